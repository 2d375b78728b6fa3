"""LoRA files: what they are called, what they change, and what they leave alone."""

import json

import pytest
import torch
from safetensors.torch import save_file

import minip2p
from minip2p.cli import main

PROMPT = "a cat on the beach"
LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "up_blocks.1.resnets.0.conv1": "output_blocks.3.0.in_layers.2",
}
TEXT = "text_model.encoder.layers.1.self_attn.q_proj"


def drawn(model, rank=2, seed=0):
    """Layer -> A, B: of a convolution with a kernel, A has it."""
    g, found = torch.Generator().manual_seed(seed), {}
    for name in LAYERS:
        w = model.unet.get_parameter(name + ".weight")
        found[name] = (
            torch.randn(rank, *w.shape[1:], generator=g) * 0.1,
            torch.randn(w.shape[0], rank, *[1] * (w.ndim - 2), generator=g) * 0.1,
        )
    width = model.text.clip_encoders[0].width
    found[TEXT] = torch.randn(rank, width, generator=g) * 0.1, torch.randn(width, rank, generator=g) * 0.1
    return found


def kohya(drawn, alpha=1.0, text="lora_te_", original=False):
    out = {}
    for name, (a, b) in drawn.items():
        own = LAYERS[name] if original and name in LAYERS else name
        stem = (text if name == TEXT else "lora_unet_") + own.replace(".", "_")
        out |= {f"{stem}.lora_down.weight": a, f"{stem}.lora_up.weight": b, f"{stem}.alpha": torch.tensor(alpha)}
    return out


def peft(drawn, inner=""):
    return {
        f"{'text_encoder' if name == TEXT else 'unet'}.{inner}{name}.lora_{which}.weight": t
        for name, both in drawn.items()
        for which, t in zip("AB", both, strict=True)
    }


def old(drawn):
    """diffusers' first names: of attention processors."""
    out = {}
    for name, both in drawn.items():
        if ".attn" in name:
            stem, leaf = name.replace(".to_out.0", ".to_out").rsplit(".", 1)
            out |= {
                f"unet.{stem}.processor.{leaf}_lora.{which}.weight": t
                for which, t in zip(("down", "up"), both, strict=True)
            }
        elif name == TEXT:
            out |= {
                f"text_encoder.{name}.lora_linear_layer.{which}.weight": t
                for which, t in zip(("down", "up"), both, strict=True)
            }
        else:
            out |= {f"unet.{name}.lora.{which}.weight": t for which, t in zip(("down", "up"), both, strict=True)}
    return out


def state(model):
    parts = {"unet": model.unet, "vae": model.vae, **model.text.encoders}
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def expected(before, drawn, scale):
    """W + s · B A, by hand."""
    after = dict(before)
    for name, (a, b) in drawn.items():
        end = name.removeprefix("text_model.") + ".weight"
        key = next(key for key in before if key.endswith(end) and key.startswith("text" if name == TEXT else "unet"))
        after[key] = before[key] + scale * torch.einsum("or,r...->o...", b.flatten(1), a)
    return after


@pytest.mark.parametrize(
    "names, factor",
    [
        (lambda d: kohya(d, alpha=1.0), 0.5),
        (lambda d: kohya(d, alpha=2.0, original=True), 1.0),
        (peft, 1.0),
        (old, 1.0),
        (lambda d: peft(d, "base_model.model."), 1.0),
    ],
)
def test_the_merged_weights_are_w_and_s_b_a_and_the_models_own_are_what_they_were(family, tmp_path, names, factor):
    """By all names that trainers use; α / r of kohya's, of rank 2."""
    model = minip2p.load(family("SD 1")[1])
    before = {name: t.clone() for name, t in state(model).items()}
    made = drawn(model)
    save_file(names(made), tmp_path / "a.safetensors")
    model.text(PROMPT)
    fingerprint, plain = model.fingerprint, model.generate(PROMPT, steps=2)
    styled = model.merged(tmp_path / "a.safetensors", 0.7)
    want, after = expected(before, made, 0.7 * factor), state(styled)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == len(made) and after.keys() == before.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, want[name], atol=1e-6, rtol=1e-6)
    assert styled.fingerprint != fingerprint
    assert not torch.equal(styled.generate(PROMPT, steps=2).latents, plain.latents)
    assert all(
        tensor.data_ptr() == state(model)[name].data_ptr() for name, tensor in after.items() if name not in changed
    ), "what does not change is shared"
    # The model itself has nothing of it.
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())
    assert fingerprint == minip2p.load(family("SD 1")[1]).fingerprint
    assert torch.equal(model.generate(PROMPT, steps=2).latents, plain.latents)


def test_runs_belong_to_the_weights_that_made_them(family, tmp_path):
    """An edit is of one model: the runs of another are refused, and their own model edits them as ever."""
    model = minip2p.load(family("SD 1")[1])
    save_file(peft(drawn(model)), tmp_path / "a.safetensors")
    run = model.generate(PROMPT, steps=2)
    before = model.edit(run, "a dog on the beach").latents
    styled = model.merged(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is another model's: edit it with the model that made it"):
        styled.edit(run, "a dog on the beach")
    run.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="another model"):
        styled.open(tmp_path / "run.safetensors")
    assert torch.equal(model.edit(run, "a dog on the beach").latents, before)


def test_two_files_are_the_sum_of_both(family, tmp_path):
    model = minip2p.load(family("SD 1")[1])
    before = {name: t.clone() for name, t in state(model).items()}
    a, b = drawn(model, seed=1), drawn(model, rank=3, seed=2)
    save_file(peft(a), tmp_path / "a.safetensors")
    save_file(peft(b), tmp_path / "b.safetensors")
    styled = model.merged(tmp_path / "a.safetensors", 1.0).merged(tmp_path / "b.safetensors", -0.5)
    want = expected(expected(before, a, 1.0), b, -0.5)
    for name, tensor in state(styled).items():
        torch.testing.assert_close(tensor, want[name], atol=1e-6, rtol=1e-6)
    assert styled.origin.said == model.origin.said | {"LoRA": "a.safetensors at 1, b.safetensors at -0.5"}


def test_both_text_encoders_of_stable_diffusion_xl(family, tmp_path):
    model = minip2p.load(family("SDXL")[1])
    a, b = torch.randn(2, 128) * 0.1, torch.randn(128, 2) * 0.1
    for prefix, part, (down, up) in (
        ("lora_te2_", "text_encoder_2.", (a, b)),
        ("lora_te1_", "text_encoder.", (a[:, :64], b[:64])),
    ):
        stem = prefix + TEXT.replace(".", "_")
        tensors = {f"{stem}.lora_down.weight": down.contiguous(), f"{stem}.lora_up.weight": up.contiguous()}
        save_file(tensors, tmp_path / "a.safetensors")
        after = state(model.merged(tmp_path / "a.safetensors"))
        (changed,) = [name for name, tensor in after.items() if not torch.equal(tensor, state(model)[name])]
        assert changed.startswith(part) and changed.endswith("encoder.layers.1.self_attn.q_proj.weight")


def test_in_16_bits_the_sum_is_rounded_once(family, tmp_path):
    model = minip2p.load(family("SD 1")[1], dtype=torch.bfloat16)
    made, name = drawn(model), "mid_block.attentions.0.proj_in"
    save_file(peft(made), tmp_path / "a.safetensors")
    before = model.unet.get_parameter(name + ".weight").clone()
    model = model.merged(tmp_path / "a.safetensors")
    a, b = made[name]
    want = (before.float() + torch.einsum("or,r...->o...", b.flatten(1), a)).bfloat16()
    assert torch.equal(model.unet.get_parameter(name + ".weight"), want)


@pytest.mark.parametrize(
    "change, says",
    [
        (
            lambda t: t.update({"lora_unet_nowhere.lora_up.weight": torch.ones(1, 1)}),
            "nowhere.lora_up.weight is no low-ra",
        ),
        (
            lambda t: t.update({"lora_unet_conv_in.hada_w1_a": torch.ones(1, 1)}),
            "conv_in.hada_w1_a is no low-rank change",
        ),
        (
            lambda t: t.pop(next(name for name in t if "up" in name.split(".")[-2])),
            "only one of its two matrices is there",
        ),
        (lambda t: t.update({name: torch.ones(2, 3) for name in list(t)[:1]}), "and its matrices are"),
        (lambda t: t.update({name: t[name] * torch.nan for name in list(t)[:1]}), "is not finite"),
        (lambda t: t.clear(), "has no tensors in it"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line_and_changes_nothing(family, tmp_path, change, says):
    model = minip2p.load(family("SD 1")[1])
    tensors = kohya(drawn(model))
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    before = state(model)
    with pytest.raises(ValueError, match=says) as error:
        model.merged(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)
    assert all(tensor is before[name] or torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_what_is_no_lora_is_one_clear_line(family, tmp_path, capsys):
    _, folder, file = family("SD 1")
    model = minip2p.load(folder)
    with pytest.raises(ValueError, match="is no low-rank change of a weight of this model"):
        model.merged(file)
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors: no such file"):
        model.merged(tmp_path / "nowhere.safetensors")
    save_file(peft(drawn(model)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="the scale of a LoRA is a number, not nan"):
        model.merged(tmp_path / "a.safetensors", float("nan"))
    said = ["generate", PROMPT, "--model", str(folder), "--steps", "1", "-o", str(tmp_path / "a.png")]
    assert main.main([*said, "--lora", f"{tmp_path / 'a.safetensors'}:much"]) == 2
    assert "what follows the colon is the scale, a number" in capsys.readouterr().err


def test_the_command_line_merges(family, tmp_path):
    folder = family("SD 1")[1]
    model = minip2p.load(folder)
    save_file(peft(drawn(model)), tmp_path / "a.safetensors")
    said = ["generate", PROMPT, "--model", str(folder), "--steps", "2"]
    pictures = []
    for n, given in enumerate(
        ([], ["--lora", f"{tmp_path / 'a.safetensors'}:0.5"], ["--lora", str(tmp_path / "a.safetensors")])
    ):
        assert main.main([*said, *given, "-o", str(tmp_path / f"{n}.png")]) == 0
        pictures.append((tmp_path / f"{n}.png").read_bytes())
    assert len(set(pictures)) == 3
    model = model.merged(tmp_path / "a.safetensors", 0.5)
    model.save(tmp_path / "merged")  # and what is saved is merged
    again = minip2p.load(tmp_path / "merged")
    assert torch.equal(again.generate(PROMPT, steps=2).latents, model.generate(PROMPT, steps=2).latents)


@pytest.mark.parametrize(
    "said, factor",
    [
        ({"unet.lora_alpha": 16, "unet.r": 2}, 8.0),
        ({"unet.lora_alpha": 16, "unet.use_rslora": True}, 16 / 2**0.5),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.attentions.0.proj_in": 6}}, 3.0),
        ({}, 1.0),
        ({"text_encoder.lora_alpha": 16}, 1.0),
        # The first pattern that is the name or its end, dots and all, as in PEFT.
        ({"unet.alpha_pattern": {"attentions.0.proj_in": 6, "proj_in": 10}, "unet.lora_alpha": 4}, 3.0),
        ({"unet.alpha_pattern": {"oj_in": 6, "mid|to_k": 8, "mid_block": 8}, "unet.lora_alpha": 4}, 2.0),
        ({"unet.alpha_pattern": {"to_k|proj_(in|out)": 6}}, 3.0),
    ],
)
def test_pefts_alpha_is_in_the_metadata(family, tmp_path, said, factor):
    """α / r, α / √r where it says so, of a layer its own."""
    model, name = minip2p.load(family("SD 1")[1]), "mid_block.attentions.0.proj_in"
    made = {name: drawn(model)[name]}
    before = model.unet.get_parameter(name + ".weight").clone()
    save_file(peft(made), tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(said)})
    model = model.merged(tmp_path / "a.safetensors")
    a, b = made[name]
    want = before + factor * torch.einsum("or,r...->o...", b.flatten(1), a)
    torch.testing.assert_close(model.unet.get_parameter(name + ".weight"), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "said, says",
    [
        ('{"unet.use_dora": true}', "is a DoRA"),
        ("[", "is not JSON"),
        ("3", "is not JSON"),
        ('{"unet.lora_alpha": "much"}', "is 'much', which is not a number"),
        ('{"unet.alpha_pattern": {"(": 4}}', "is no pattern of names"),
        ('{"unet.alpha_pattern": ["x"]}', "and no mapping"),
    ],
)
def test_metadata_that_cannot_be_honoured_are_one_clear_line(family, tmp_path, said, says):
    model = minip2p.load(family("SD 1")[1])
    save_file(peft(drawn(model)), tmp_path / "a.safetensors", {"lora_adapter_metadata": said})
    with pytest.raises(ValueError, match=says):
        model.merged(tmp_path / "a.safetensors")


def test_a_layer_that_is_named_twice_and_an_alpha_of_two_numbers_are_refused(family, tmp_path):
    model = minip2p.load(family("SD 1")[1])
    made = drawn(model)
    save_file(peft(made) | {name: t.clone() for name, t in kohya(made).items()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is there under another name as well"):
        model.merged(tmp_path / "a.safetensors")
    save_file(kohya(made, alpha=[1.0, 2.0]), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b.safetensors: the alpha of .* is not one number"):
        model.merged(tmp_path / "b.safetensors")


def test_pefts_own_file_has_its_alpha_beside_it(family, tmp_path):
    """As `PeftModel.save_pretrained` writes an adapter; a text encoder's patterns have transformers 4's names."""
    model, name = minip2p.load(family("SD 1")[1]), "mid_block.attentions.0.proj_in"
    for layer, inner, said in (
        (name, "", {"lora_alpha": 16, "r": 2}),
        (TEXT, "text_encoder.", {"lora_alpha": 1, "alpha_pattern": {TEXT: 16}}),
    ):
        a, b = drawn(model)[layer]
        stem = f"{inner}base_model.model.{layer}"
        save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        after = state(model.merged(tmp_path / "adapter_model.safetensors"))
        want = expected(state(model), {layer: (a, b)}, 8.0)
        for key, tensor in after.items():
            torch.testing.assert_close(tensor, want[key], atol=1e-6, rtol=1e-6)


def test_a_twin_keeps_what_the_model_is(family, tmp_path):
    """Its guidance, its buffers, and that no weight asks for a gradient."""
    model = minip2p.load(family("SDXL Turbo")[1])
    a, b = torch.randn(2, 128) * 0.1, torch.randn(128, 2) * 0.1
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    stem = f"diffusion_model.{name}"  # without unet. before it
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, tmp_path / "a.safetensors")
    styled = model.merged(tmp_path / "a.safetensors")
    assert styled.guidance_scale == 1.0 and styled.text.zeros and not styled.unet.training
    assert not any(p.requires_grad for p in styled.unet.parameters())
    changed = styled.unet.get_parameter(stem.removeprefix("diffusion_model.") + ".weight")
    torch.testing.assert_close(
        changed, model.unet.get_parameter(stem.removeprefix("diffusion_model.") + ".weight") + b @ a
    )
    save_file(
        {f"{stem.removeprefix('diffusion_model.')}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))},
        tmp_path / "b.safetensors",
    )
    assert model.merged(tmp_path / "b.safetensors").fingerprint == styled.fingerprint


def test_what_overflows_is_the_adaptations_fault(family, tmp_path):
    model = minip2p.load(family("SD 1")[1], dtype=torch.float16)
    save_file(peft(drawn(model)), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors: at a scale of 1e\+07, .* is too large for torch.float16"):
        model.merged(tmp_path / "a.safetensors", 1e7)
