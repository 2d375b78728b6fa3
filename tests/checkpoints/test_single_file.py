"""Models in one file, in the names of the original codebases: read as diffusers reads them, strictly."""

import shutil

import pytest
import torch
from families import FAMILIES, same_models, same_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints import text_encoders
from minip2p.checkpoints.key_maps import VAE_ATTENTION_ALTERNATIVES
from minip2p.checkpoints.single_file import SingleFile
from minip2p.config import SchedulerConfig
from minip2p.sched import DDIMScheduler


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_equals_the_folder_to_the_bit_and_diffusers_reads_the_same(family, name):
    pipe, folder, file = family(name)
    model = minip2p.load(file, config=folder)
    assert same_models(model, minip2p.load(folder))
    expected = type(pipe).from_single_file(str(file), config=str(folder))
    assert same_tensors(model.unet, expected.unet) and same_tensors(model.vae, expected.vae)
    for component, encoder in model.text.encoders.items():
        assert same_tensors(encoder, getattr(expected, component), may_lack=["position_ids"])


def test_a_folder_with_nothing_but_tokenizers_is_enough(family, tmp_path):
    """All configurations are then inferred from the file. The folder's default guidance is taken."""
    _, folder, file = family("SDXL")
    for component in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / component, tmp_path / "small" / component)
    (tmp_path / "small/minip2p.json").write_text('{"guidance": 3.0}')
    model = minip2p.load(file, config=tmp_path / "small")
    assert same_models(model, minip2p.load(folder))
    assert model.default_guidance == 3.0 and model.text.zero_empty_prompt


def test_the_folder_must_not_contradict_the_files_metadata(family, tmp_path):
    save_file(load_file(family("SD 2, v")[2]), tmp_path / "v.safetensors", {"modelspec.prediction_type": "v"})
    message = "prediction_type is 'epsilon', but .*v.safetensors states 'v_prediction'"
    with pytest.raises(ValueError, match=message):
        minip2p.load(tmp_path / "v.safetensors", config=family("SD 2 base")[1])


def test_the_unets_input_channels_are_those_of_the_file(family):
    """So that the folder of a text-to-image model serves the inpainting models of its family."""
    model = minip2p.load(family("inpainting")[2], config=family("SD 1")[1])
    assert same_tensors(model.unet, family("inpainting")[0].unet) and model.components.extra_channels == 5


def test_a_single_file_needs_a_tokenizer_and_a_folder_needs_no_config(family):
    with pytest.raises(ValueError, match="a single file has no tokenizer: pass a folder in diffusers' layout"):
        minip2p.load(family("SD 1")[2])
    with pytest.raises(ValueError, match="a config is for a single file"):
        minip2p.load(family("SD 1")[1], config=family("SD 1")[1])


def test_a_pickled_file_is_not_read(family, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02")
    with pytest.raises(ValueError, match=r"model.ckpt: is a pickle, which can run any program when it is opened"):
        minip2p.load(tmp_path / "model.ckpt", config=family("SD 1")[1])


# Which tensors must be in the file, and which may


SCHEDULE = DDIMScheduler(
    SchedulerConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
).alphas_cumprod
OLD_EXTRAS = {
    "model_ema.decay": torch.ones(()),
    "model_ema.diffusion_modelinput_blocks00weight": torch.ones(3),
    "first_stage_model.model_ema.decay": torch.ones(()),
    "first_stage_model.loss.logvar": torch.ones(()),
    "betas": 1 - SCHEDULE / torch.cat([torch.ones(1), SCHEDULE[:-1]]),
    "alphas_cumprod": SCHEDULE.clone(),
    "denoiser.sigmas": ((1 - SCHEDULE) / SCHEDULE).sqrt().flip(0),
    "sqrt_alphas_cumprod": torch.ones(4),
    "posterior_variance": torch.ones(4),
    "log_one_minus_alphas_cumprod": torch.ones(4),
    "logvar": torch.ones(4),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    "cond_stage_model.transformer.text_projection.weight": torch.ones(3),
    "cond_stage_model.transformer.vision_model.post_layernorm.weight": torch.ones(3),
    "safety_checker.concept_embeds": torch.ones(3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_old_files_also_contain_is_not_read(family, tmp_path, dtype):
    """Their own schedule is compared, as far as its dtype resolves it."""
    _, folder, file = family("SD 1")
    extras = {name: t.to(dtype) if t.is_floating_point() else t for name, t in OLD_EXTRAS.items()}
    save_file(load_file(file) | extras, tmp_path / "old.safetensors")
    assert same_models(minip2p.load(tmp_path / "old.safetensors", config=folder), minip2p.load(folder))


def stored_otherwise(tensors, change):
    """The tensors of a single file with what `change` makes of each name and tensor."""
    return dict(change(name, t) for name, t in tensors.items())


def renamed_attention(generation, axes):
    """Renames the VAE's attention as a generation of diffusers does, with weights of this number of axes."""

    def change(name, t):
        before, place, rest = name.partition(".mid.attn_1.")
        if not place:
            return name, t
        module, tensor = rest.rsplit(".", 1)
        other = VAE_ATTENTION_ALTERNATIVES[module]
        module = other[min(generation, len(other) - 1)] if generation >= 0 else module
        if tensor == "weight" and t.ndim == 4:
            t = t.flatten(1).reshape(*t.shape[:2], *[1] * (axes - 2))
        return f"{before}{place}{module}.{tensor}", t

    return change


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("generation", [-1, 0, 1, 2])
def test_the_vaes_attention_under_every_name_and_in_every_shape(family, tmp_path, generation, axes):
    pipe, folder, file = family("SD 1")
    save_file(stored_otherwise(load_file(file), renamed_attention(generation, axes)), tmp_path / "a.safetensors")
    assert same_tensors(minip2p.load(tmp_path / "a.safetensors", config=folder).vae, pipe.vae)


def reshaped_projections(name, t):
    if "diffusion_model" in name and name.endswith(("proj_in.weight", "proj_out.weight")):
        return name, t[:, :, 0, 0].clone() if t.ndim == 4 else t[:, :, None, None].clone()
    return name, t


@pytest.mark.parametrize("name", ["SD 1", "SD 2 base", "SDXL"])
def test_the_projections_of_the_unet_as_matrices_or_convolutions(family, tmp_path, name):
    pipe, folder, file = family(name)
    save_file(stored_otherwise(load_file(file), reshaped_projections), tmp_path / "a.safetensors")
    model = minip2p.load(tmp_path / "a.safetensors", config=folder)
    assert same_tensors(model.unet, pipe.unet)
    inferred = SingleFile(tmp_path / "a.safetensors", None).inferred
    assert inferred.has_openclip() == (name != "SD 1")  # which tells how wide its heads are, whatever the shapes


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("SD 1", "first_stage_model.", "vae."),
        ("SD 1", "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        ("SD 2, v", "cond_stage_model.model.", "conditioner.embedders.0.model."),
    ],
)
def test_other_prefixes_that_tools_write(family, tmp_path, name, old, new):
    """diffusers' vae., encoders from before transformers' text_model., and the layout of SD Turbo's own file."""
    _, folder, file = family(name)
    tensors = {(new + n.removeprefix(old) if n.startswith(old) else n): t for n, t in load_file(file).items()}
    assert tensors.keys() != load_file(file).keys()
    save_file(tensors, tmp_path / "a.safetensors")
    assert same_models(minip2p.load(tmp_path / "a.safetensors", config=folder), minip2p.load(folder))


def test_a_projection_that_is_stored_as_a_matrix_of_transformers(family, tmp_path):
    """text_projection.weight is not transposed, text_projection is: as ComfyUI reads them."""
    pipe, folder, file = family("SDXL")
    tensors, name = load_file(file), "conditioner.embedders.1.model.text_projection"
    tensors[name + ".weight"] = tensors.pop(name).T.contiguous()
    save_file(tensors, tmp_path / "a.safetensors")
    model = minip2p.load(tmp_path / "a.safetensors", config=folder)
    assert same_tensors(model.text.encoders["text_encoder_2"], pipe.text_encoder_2, may_lack=["position_ids"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("model.diffusion_model.extra.weight", "extra.weight is not a tensor of this model"),
        ("first_stage_model.extra.weight", "extra.weight is not a tensor of this model"),
        ("cond_stage_model.transformer.text_model.extra.weight", "extra.weight is not a tensor of this model"),
        ("extra.weight", "extra.weight is not a tensor of a supported model"),
    ],
)
def test_an_unknown_tensor_is_an_error(family, tmp_path, name, message):
    _, folder, file = family("SD 1")
    save_file(load_file(file) | {name: torch.ones(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        minip2p.load(tmp_path / "odd.safetensors", config=folder)
    assert "odd.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["first_stage_model.quant_conv.bias", "model.diffusion_model.out.2.bias"])
def test_a_missing_tensor_is_an_error(family, tmp_path, name):
    _, folder, file = family("SD 1")
    save_file({n: t for n, t in load_file(file).items() if n != name}, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=f"{name} is missing"):
        minip2p.load(tmp_path / "lacking.safetensors", config=folder)


def test_the_last_layer_of_stable_diffusion_2_may_be_missing_but_no_other(family, tmp_path):
    """It is not read, nor is the projection; the folder's configuration states how many layers are read."""
    pipe, folder, file = family("SD 2, v")
    tensors = load_file(file)
    prefix = "cond_stage_model.model.transformer."
    last = max(int(name.split(".")[4]) for name in tensors if name.startswith(prefix))
    fewer = {name: t for name, t in tensors.items() if f"resblocks.{last}." not in name and "text_proj" not in name}
    save_file(fewer, tmp_path / "fewer.safetensors")
    model = minip2p.load(tmp_path / "fewer.safetensors", config=folder)
    assert same_tensors(model.text.encoders["text_encoder"], pipe.text_encoder)
    too_few = {name: t for name, t in fewer.items() if f"resblocks.{last - 1}." not in name}
    save_file(too_few, tmp_path / "too_few.safetensors")
    with pytest.raises(ValueError, match=rf"too_few.safetensors: .*resblocks.{last - 1}.* is missing"):
        minip2p.load(tmp_path / "too_few.safetensors", config=folder)


# Damaged files


@pytest.fixture(scope="module")
def damaged(family, tmp_path_factory):
    """A folder with tokenizers alone, and room for a file; the file's tensors; the names of the networks' tensors.

    The tokenizer is read once: reading it for every example would take most of the time.
    """
    _, folder, file = family("SD 1")
    work = tmp_path_factory.mktemp("damaged")
    shutil.copytree(folder / "tokenizer", work / "small/tokenizer")
    model = minip2p.load(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoders, "load_tokenizer", lambda path: model.text.tokenizer)
        yield work, load_file(file), (model.unet.state_dict().keys(), model.vae.state_dict().keys())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), max_size=4),
    tensor=st.integers(0, 2000),
    new_name=st.text(max_size=12),
    damage=st.sampled_from(["none", "bytes", "drop", "name", "shape"]),
)
def test_a_damaged_file_is_a_complete_model_or_one_clear_line(damaged, changes, tensor, new_name, damage):
    """The configurations are inferred from damaged keys and shapes, and the file is then read by them."""
    work, tensors, (unet_names, vae_names) = damaged
    tensors, path, small = dict(tensors), work / "single.safetensors", work / "small"
    name = sorted(tensors)[tensor % len(tensors)]
    if damage == "drop":
        del tensors[name]
    elif damage == "name":
        tensors[new_name] = tensors.pop(name)
    elif damage == "shape":
        tensors[name] = tensors[name].flatten()[:3].clone()
    save_file(tensors, path)
    if damage == "bytes":
        with open(path, "r+b") as file:
            for position, byte in changes:  # in the header, and in some of the numbers
                file.seek(position)
                file.write(bytes([byte]))
    try:
        model = minip2p.load(path, config=small)
    except (ValueError, FileNotFoundError) as error:
        assert "\n" not in str(error) and (str(path) in str(error) or str(small) in str(error)), error
    else:
        assert model.unet.state_dict().keys() == unet_names and model.vae.state_dict().keys() == vae_names


def test_a_file_without_a_vae_and_a_config_that_is_a_file_are_named(family, tmp_path):
    _, folder, file = family("SD 1")
    tensors = load_file(file)
    save_file(
        {name: t for name, t in tensors.items() if not name.startswith("first_stage_model.")},
        tmp_path / "m.safetensors",
    )
    with pytest.raises(ValueError, match=r"m.safetensors: has no VAE: give one as vae \(--vae on the command line\)$"):
        minip2p.load(tmp_path / "m.safetensors", config=folder)
    minip2p.load(tmp_path / "m.safetensors", config=folder, vae=folder)
    with pytest.raises(FileNotFoundError, match="is a file, not a folder; a model is a folder with"):
        minip2p.load(file, config=file)
