"""Model configurations, read from the config.json files of a checkpoint. Unknown settings are errors.

Field names and defaults are those of diffusers, so a config.json explains the fields here and the other way round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, ClassVar, Self, get_args, get_origin

from minip2p.io.files import read_json
from minip2p.validation import is_finite, is_integer

# Limits that no real model reaches (SDXL has ten layers in a block, and 128 latents a side). A corrupted number beyond
# them would build a network for minutes, or take all memory.
MAX_LAYERS, MAX_SIDE = 100, 1024


@dataclass(frozen=True)
class Config:
    """The base of all configurations: a frozen dataclass that is built from a file or a mapping, and checked."""

    # Fields that are supported with one value only. Another value would change the results, so it is an error.
    required_values: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Fields that do not affect the results here, whatever their value.
    ignored: ClassVar[tuple[str, ...]] = ()
    # The class of diffusers whose configuration it is; None where classes share it.
    class_name: ClassVar[str | None] = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], location: str = "config") -> Self:
        """Builds a configuration from a mapping of field -> value. Missing fields get their defaults.

        Ignored are: fields in `ignored`, names that begin with an underscore, and unknown fields that are None or False
        (options that are off). location: names the source in errors, a path for example.
        Raises ValueError for another class of diffusers, an unknown field, a value that is not supported, a wrong type,
        or values that are invalid together.
        """
        cls._check_unknown_fields(values, location)
        known = {name: values[name] for name in (f.name for f in fields(cls)) if name in values}
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
        for field in fields(cls):
            if field.name in known and not matches_annotation(known[field.name], field.type):
                kind = getattr(field.type, "__name__", field.type)
                raise ValueError(f"{location}: {field.name} = {known[field.name]!r} is not of type {kind}")
        try:
            return cls(**known)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"{location}: {error}") from None

    @classmethod
    def _check_unknown_fields(cls, values: Mapping[str, Any], location: str) -> None:
        """Raises ValueError for another class, a value that is not supported, or a field neither known nor off."""
        if cls.class_name is not None and (stated := values.get("_class_name", cls.class_name)) != cls.class_name:
            raise ValueError(f"{location}: is of the class {stated!r}, and only {cls.class_name} is supported")
        known = {f.name for f in fields(cls)}
        for name, value in values.items():
            if name in known or name in cls.ignored or name.startswith("_"):
                continue
            if name in cls.required_values:
                required = cls.required_values[name]
                if value != required:
                    raise ValueError(f"{location}: {name} = {value!r} is not supported, only {required!r} is")
            elif value is not None and value is not False:
                raise ValueError(f"{location}: {name} = {value!r} is not a field that minip2p knows")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a config.json. Raises FileNotFoundError or ValueError with one line that names the file."""
        return cls.from_dict(read_json(path), str(path))


def matches_annotation(value: Any, annotation: Any) -> bool:
    """Whether a value has the type of a field's annotation. An int is a float too; a bool is neither int nor float."""
    if isinstance(annotation, UnionType):
        return any(matches_annotation(value, option) for option in get_args(annotation))
    if get_origin(annotation) is tuple:
        arguments = get_args(annotation)
        return (
            isinstance(value, tuple)
            and (arguments[-1] is Ellipsis or len(value) == len(arguments))
            and all(matches_annotation(item, arguments[0]) for item in value)
        )
    if annotation is float:
        return is_finite(value)
    return isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool))


def config_size(values: Mapping[str, Any], name: str, default: int, location: Path) -> int:
    """A size from a configuration of transformers: a whole number from 1 to 2²⁰. Raises ValueError for another value.

    location: the configuration's file, for the error.
    """
    size = values.get(name, default)
    if not is_integer(size) or isinstance(size, bool) or not 1 <= size <= 2**20:
        raise ValueError(f"{location}: {name} is {size!r}, and not a size")
    return int(size)


@dataclass(frozen=True)
class UNetConfig(Config):
    """unet/config.json.

    sample_size: rows and columns of the latents that the model was trained on.
    block_out_channels: the channels of each level; the number of levels is its length.
    attention_head_dim: the *number* of heads of each level. The name is a misnomer of diffusers that the files keep.
    transformer_layers_per_block: of each level.
    time_cond_proj_dim: the width of the embedding of the guidance scale, in models that read it (Luo et al. 2023, LCM).
    addition_embed_type, addition_time_embed_dim, projection_class_embeddings_input_dim: SDXL's extra condition.
    upcast_attention: accepted and not used. It concerns 16-bit runs, and torch's kernels sum in float32 anyway.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    time_cond_proj_dim: int | None = None
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    upcast_attention: bool | None = False

    class_name: ClassVar[str | None] = "UNet2DConditionModel"
    required_values: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "act_fn": "silu",
            "attention_type": "default",
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "downsample_padding": 1,
            "dropout": 0.0,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "resnet_out_scale_factor": 1.0,
            "resnet_time_scale_shift": "default",
            "time_embedding_type": "positional",
        }
    )
    ignored: ClassVar[tuple[str, ...]] = ("addition_embed_type_num_heads",)  # read by other embedding types only

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        size = 1 if self.sample_size is None else self.sample_size
        sides = size if isinstance(size, tuple) else (size,)
        if not levels or min(*self.block_out_channels, *sides, self.layers_per_block, self.in_channels) < 1:
            raise ValueError("levels, channels, layers and sample size must be at least 1")
        if max(levels, self.layers_per_block, *self.per_level(self.transformer_layers_per_block)) > MAX_LAYERS:
            raise ValueError(f"there are more than {MAX_LAYERS} levels, or layers in a block")
        if max(sides) > MAX_SIDE:
            raise ValueError(f"sample_size is more than {MAX_SIDE} latents a side")
        for name in ("down_block_types", "up_block_types", "attention_head_dim", "transformer_layers_per_block"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ValueError(f"{name} has {len(value)} entries for {levels} levels")
        for width, heads in zip(self.block_out_channels, self.per_level(self.attention_head_dim), strict=True):
            if heads < 1 or self.norm_num_groups < 1 or width % heads or width % self.norm_num_groups:
                raise ValueError(
                    f"{width} channels cannot be split into {heads} heads and {self.norm_num_groups} groups"
                )
        if self.addition_embed_type not in (None, "text_time"):
            raise ValueError(f"addition_embed_type {self.addition_embed_type!r} is not supported")
        if (guidance_width := self.time_cond_proj_dim) is not None and (guidance_width < 4 or guidance_width % 2):
            raise ValueError(f"time_cond_proj_dim must be even and at least 4, not {guidance_width}")

    def per_level(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        """A field with one number for all levels, or one for each level -> one for each level."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)


@dataclass(frozen=True)
class VAEConfig(Config):
    """vae/config.json.

    scaling_factor, shift_factor: latents are (z − shift_factor) · scaling_factor, z the encoder's output.
    force_upcast: SDXL's VAE overflows in float16, so it runs in float32 unless its file sets this to false.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    force_upcast: bool = True

    class_name: ClassVar[str | None] = "AutoencoderKL"
    required_values: ClassVar[Mapping[str, Any]] = MappingProxyType({"act_fn": "silu", "mid_block_add_attention": True})
    ignored: ClassVar[tuple[str, ...]] = ("sample_size",)  # a hint for tiled decoding

    def __post_init__(self) -> None:
        for types, known in ((self.down_block_types, "DownEncoderBlock2D"), (self.up_block_types, "UpDecoderBlock2D")):
            if set(types) != {known} or len(types) != len(self.block_out_channels):
                raise ValueError(f"block types must be one {known} for each of the channels, not {types}")
        if max(len(self.block_out_channels), self.layers_per_block) > MAX_LAYERS:
            raise ValueError(f"there are more than {MAX_LAYERS} levels, or layers in a block")
        if self.scaling_factor == 0:
            raise ValueError("scaling_factor is 0: all latents would be the same")


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """scheduler/scheduler_config.json: the noise schedule that the model was trained with.

    The sampler is DDIM. If the file names another scheduler, its betas, offset, spacing and prediction type are used
    with DDIM; for an LCMScheduler see `LCMSchedulerConfig`.
    rescale_betas_zero_snr: the betas are rescaled so that the last timestep has no signal (Lin et al. 2023, algorithm
    1). The model must predict v: where there is no signal, the noise says nothing about the picture.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False

    required_values: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"clip_sample": False, "thresholding": False, "trained_betas": None}
    )
    # Settings of options that are off, and of samplers other than DDIM.
    ignored: ClassVar[tuple[str, ...]] = (
        "clip_sample_range",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "skip_prk_steps",
        "interpolation_type",
        "use_karras_sigmas",
        "sigma_min",
        "sigma_max",
        "timestep_type",
        "final_sigmas_type",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "algorithm_type",
        "solver_order",
        "solver_type",
        "lower_order_final",
        "euler_at_final",
        "use_lu_lambdas",
        "lambda_min_clipped",
        "variance_type",
        "use_flow_sigmas",
        "flow_shift",
        "time_shift_type",
        "use_dynamic_shifting",
        "predict_x0",
        "solver_p",
        "disable_corrector",
        "predictor_order",
        "corrector_order",
        "tau_func",
        "original_inference_steps",
        "timestep_scaling",
    )

    def __post_init__(self) -> None:
        for name, known in (
            ("beta_schedule", ("linear", "scaled_linear")),
            ("prediction_type", ("epsilon", "v_prediction")),
            ("timestep_spacing", ("leading", "trailing", "linspace")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"0 < beta_start <= beta_end < 1 does not hold: {self.beta_start}, {self.beta_end}")
        if self.num_train_timesteps < 1 or self.steps_offset not in (0, 1):
            raise ValueError("num_train_timesteps must be at least 1, and steps_offset 0 or 1")
        if self.rescale_betas_zero_snr and (self.prediction_type != "v_prediction" or self.num_train_timesteps == 1):
            raise ValueError(
                "a schedule that ends without any signal (zero terminal SNR) needs a model that predicts v, but "
                f"prediction_type is {self.prediction_type!r}"
            )


@dataclass(frozen=True)
class LCMSchedulerConfig(SchedulerConfig):
    """scheduler/scheduler_config.json of a latent consistency model (Luo et al. 2023).

    original_inference_steps: at how many timesteps, evenly spaced, the model was distilled. timestep_scaling: of the
    boundary condition. timestep_spacing, steps_offset and set_alpha_to_one are not used.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    class_name: ClassVar[str | None] = "LCMScheduler"

    def __post_init__(self) -> None:
        super().__post_init__()
        # At timestep 0 the boundary condition leaves nothing of the prediction.
        if not 1 <= self.original_inference_steps <= self.num_train_timesteps // 2:
            raise ValueError(f"original_inference_steps must lie between 1 and {self.num_train_timesteps // 2}")
        if self.timestep_scaling <= 0:
            raise ValueError(f"timestep_scaling must be more than 0, not {self.timestep_scaling}")


@dataclass(frozen=True)
class SamplingDefaults(Config):
    """minip2p.json, next to model_index.json: the defaults that a model asks for. The file is optional.

    guidance: the guidance scale, 7.5 as in diffusers' text-to-image pipelines. words: all words of the captions that a
    small model was trained with; none where the model may know any word. parts_from: the name of a folder beside the
    model's own, which has the VAE, the text encoder and the tokenizer that the model's own does not have.
    """

    guidance: float = 7.5
    words: tuple[str, ...] = ()
    parts_from: str = ""

    def __post_init__(self) -> None:
        name = self.parts_from
        if name and (Path(name).name != name or name == ".." or "\\" in name or not name.isprintable()):
            raise ValueError(f"parts_from must be the name of a folder beside this one, not {name!r}")
