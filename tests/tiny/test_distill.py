"""The consistency distillation: its loss by hand, exact resumption, a warm start, and the folder that it writes."""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import LCMScheduler as DiffusersLCM
from safetensors.torch import load_file

import minip2p
from minip2p.checkpoints.components import RowCounter
from minip2p.config import SchedulerConfig
from minip2p.sched import DDIMScheduler, LCMScheduler
from minip2p.tiny import distill
from minip2p.tiny.batches import Batch
from minip2p.tiny.distill import HUBER, LEARNING_RATE, POINTS, Distillation, distil, student_scheduler, write_student
from minip2p.tiny.grounding import SLOTS, attention_targets, grounding_loss
from minip2p.tiny.loop import seeded_generator
from minip2p.tiny.train_unet import GROUNDING_WEIGHT, SCHEDULER_CONFIG, UNET_CONFIG, stratified_timesteps
from minip2p.unet import UNet

WORDS, EMPTY = 3.0, 1.0  # the embeddings of the stub's captions


def linear_eps(factor, x, t, context):
    """A network whose prediction is known: it depends on the latents, the timestep and the words."""
    return factor * x + t[:, None, None, None] / 1000 + 0.1 * context.mean((1, 2))[:, None, None, None]


def stub_distillation(guidance_scale):
    """A distillation of networks that are numbers: the factors of `linear_eps`. Captions are embedded as their ids."""

    def encoder(input_ids):
        return SimpleNamespace(last_hidden_state=input_ids[..., None].float())

    text, scheduler = SimpleNamespace(encoders={"text_encoder": encoder}), DDIMScheduler(SCHEDULER_CONFIG)
    model = SimpleNamespace(text=text, unet=0.3, scheduler=scheduler, device=torch.device("cpu"))
    return Distillation(model, guidance_scale, lambda factor, *inputs: (linear_eps(factor, *inputs), {}))


def test_the_boundary_condition_is_that_of_diffusers():
    """At every timestep; float32, 1e-6. At timestep 0 the latents are what they are."""
    distillation, theirs = stub_distillation(4.0), DiffusersLCM()
    expected = [theirs.get_scalings_for_boundary_condition_discrete(t) for t in range(1000)]
    torch.testing.assert_close(distillation.boundary, torch.tensor(expected), atol=1e-6, rtol=1e-6)
    x, t = torch.randn(2, 4, 2, 2), torch.tensor([0, 0])
    torch.testing.assert_close(distillation.endpoint(0.9, x, t, torch.ones(2, 3, 1))[0], x)


def test_the_students_time_steps_are_the_points_of_the_distillation():
    scheduler = student_scheduler(SimpleNamespace(scheduler=DDIMScheduler(SCHEDULER_CONFIG)))
    spacing = 1000 // POINTS
    assert scheduler.timesteps(POINTS)[::-1] == [(i + 1) * spacing - 1 for i in range(POINTS)]
    assert torch.equal(scheduler.alphas_cumprod, DDIMScheduler(SCHEDULER_CONFIG).alphas_cumprod)


def test_the_loss_is_algorithm_1_written_out():
    """For one latent at a time, in float64: the noise, the teacher's guided DDIM step, both endpoints, the distance."""
    n, w, student = 2 * POINTS, 4.0, 0.7
    distillation = stub_distillation(w)
    alphas = distillation.alphas_cumprod.double().tolist()
    x0 = torch.randn(n, 4, 2, 2, generator=seeded_generator(1))
    batch = Batch(x0, torch.zeros(n, SLOTS, 2, 2), torch.full((n, 5), int(WORDS)), torch.full((n, 5), -1))
    loss = distillation.loss(student, x0, batch, torch.full((5,), int(EMPTY)), seeded_generator(2))

    generator = seeded_generator(2)
    points = stratified_timesteps(n, POINTS, generator).tolist()
    noise = torch.randn(x0.shape, generator=generator).double()
    assert {*points} == {*range(POINTS)}  # the last point, next to the picture, among them

    def eps(factor, x, t, words):
        return factor * x + t / 1000 + 0.1 * words

    def endpoint(x, t):
        scaled = 10.0 * t
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return c_skip * x + c_out * (x - (1 - alphas[t]) ** 0.5 * eps(student, x, t, WORDS)) / alphas[t] ** 0.5

    total = 0.0
    for i, point in enumerate(points):
        t = 20 * point + 19
        a, b = alphas[t], alphas[t - 20] if t >= 20 else 1.0
        x = a**0.5 * x0[i].double() + (1 - a) ** 0.5 * noise[i]
        e = (1 - w) * eps(0.3, x, t, EMPTY) + w * eps(0.3, x, t, WORDS)
        x_next = b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e
        target = endpoint(x_next, t - 20) if t >= 20 else x_next
        total += ((endpoint(x, t) - target) ** 2 + HUBER**2).sqrt().sub(HUBER).mean().item() / n
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_the_loss_has_the_grounding_of_the_attention():
    """Beyond the loss without maps, it is that of the student's maps, times its weight."""
    n = POINTS
    site = next(site for site in UNet(UNET_CONFIG).sites if site.cross and site.stride == 1)
    maps = {site: torch.rand(n, 2, 16, 5, generator=seeded_generator(3))}
    distillation = stub_distillation(2.0)
    slots = torch.full((n, 5), -1)
    slots[:, 2] = 0
    x0, regions = torch.randn(n, 4, 4, 4, generator=seeded_generator(1)), torch.rand(n, SLOTS, 4, 4)
    batch = Batch(x0, regions, torch.full((n, 5), int(WORDS)), slots)

    def loss():
        return distillation.loss(0.7, x0, batch, torch.ones(5, dtype=torch.long), seeded_generator(2))

    without = loss()
    distillation.predict = lambda factor, *inputs: (linear_eps(factor, *inputs), maps)
    grounding = grounding_loss(maps, attention_targets(slots, regions))
    assert float(grounding) > 0.01
    torch.testing.assert_close(loss(), without + GROUNDING_WEIGHT * grounding)


def test_the_target_has_no_gradient():
    """The derivative of the loss is that of the prediction alone, the target being a number."""
    distillation, n, step = stub_distillation(2.0), POINTS, 1e-3
    x0 = torch.randn(n, 4, 2, 2, generator=seeded_generator(1))
    batch = Batch(x0, torch.zeros(n, SLOTS, 2, 2), torch.full((n, 5), 3), torch.full((n, 5), -1))

    def loss(student, target=None):
        endpoint = distillation.endpoint
        if target is not None:
            distillation.endpoint = lambda factor, *inputs: endpoint(
                factor if torch.is_grad_enabled() else target, *inputs
            )
        value = distillation.loss(student, x0, batch, torch.ones(5, dtype=torch.long), seeded_generator(2))
        distillation.endpoint = endpoint
        return value

    student = torch.tensor(0.7, requires_grad=True)
    loss(student).backward()
    expected = (loss(0.7 + step, target=0.7) - loss(0.7 - step, target=0.7)) / (2 * step)
    assert float(student.grad) == pytest.approx(float(expected), rel=1e-2)


# --- a small teacher


@pytest.fixture
def teacher(cpu_model):
    """The model that ships, with a small random UNet."""
    torch.manual_seed(0)
    unet = UNet(replace(UNET_CONFIG, block_out_channels=(8, 8, 8), norm_num_groups=4, attention_head_dim=2))
    return replace(cpu_model, components=replace(cpu_model.components, unet=unet))


class Scenes:
    """A source of random batches, the same at each step; it notes which steps and ages were asked for."""

    def __init__(self):
        self.requests = []

    def batch(self, step, age, size):
        self.requests.append((step, age))
        generator, slots = seeded_generator(step), torch.full((2, 77), -1)
        slots[:, 1] = 0
        return Batch(
            torch.randn(2, 4, 16, 16, generator=generator),
            torch.rand(2, SLOTS, 16, 16, generator=generator),
            torch.randint(0, 100, (2, 77), generator=generator),
            slots,
        )


def train(teacher, work, steps, source=None, **options):
    student, done = distil(teacher, source or Scenes(), work, seed=0, stop_at=float("inf"), steps=steps, **options)
    return student.state_dict(), done


def test_a_killed_distillation_resumes_exactly(teacher, tmp_path, monkeypatch):
    """The same batches and the same weights to the bit, both those that train on and their average."""
    monkeypatch.setattr("minip2p.tiny.distill.cooldown", lambda position, length: 1.0)  # depends on the run's length
    uninterrupted, killed = Scenes(), Scenes()
    expected, done = train(teacher, tmp_path / "a", 3, uninterrupted)
    train(teacher, tmp_path / "b", 1, killed)
    resumed, resumed_steps = train(teacher, tmp_path / "b", 3, killed)
    assert done == resumed_steps == 3 and killed.requests == uninterrupted.requests == [(0, 0), (1, 64), (2, 128)]
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    (a,), (b,) = (list((tmp_path / name).glob("*/checkpoint.safetensors")) for name in "ab")
    assert a.parent.name == b.parent.name == f"distil-{teacher.components.fingerprint[:8]}"
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())
    assert any(not torch.equal(tensor, teacher.unet.state_dict()[name]) for name, tensor in expected.items())


def test_the_student_that_is_returned_is_the_moving_average(teacher, tmp_path):
    student, _ = train(teacher, tmp_path, 2)
    (file,) = tmp_path.glob("*/checkpoint.safetensors")
    checkpoint = load_file(file)
    average = {name.removeprefix("ema."): tensor for name, tensor in checkpoint.items() if name.startswith("ema.")}
    assert average.keys() == student.keys() and all(torch.equal(average[name], student[name]) for name in student)
    assert any(not torch.equal(checkpoint[f"model.{name}"], average[name]) for name in average)


def test_a_step_is_of_scaled_latents_at_the_teachers_guidance_with_noise_of_its_own(teacher, tmp_path, monkeypatch):
    steps = []

    class Noted(Distillation):
        def loss(self, student, x0, batch, empty_ids, generator):
            steps.append((x0, self.guidance_scale, generator.initial_seed()))
            return super().loss(student, x0, batch, empty_ids, generator)

    monkeypatch.setattr(distill, "Distillation", Noted)
    train(teacher, tmp_path, 2)
    for step, (x0, guidance_scale, _) in enumerate(steps):
        assert torch.equal(x0, teacher.vae.config.scaling_factor * Scenes().batch(step, 0, 64).latents)
        assert guidance_scale == teacher.default_guidance == 4.0
    assert len({seed for _, _, seed in steps}) == 2


def test_the_training_is_told_the_size_of_a_step_and_a_rate_that_falls(teacher, tmp_path, monkeypatch):
    """A step of 128 pictures counts as two. The rate is constant for 7 tenths of the steps and then falls to zero."""
    options = {}

    def note(*_, **keywords):
        options.update(keywords)
        raise InterruptedError

    monkeypatch.setattr(distill, "Training", note)
    for size, stride in ((64, 1), (128, 2)):
        with pytest.raises(InterruptedError):
            train(teacher, tmp_path, 10, size=size)
        assert options["stride"] == stride
    rates = [options["learning_rate"](step) / LEARNING_RATE for step in (0, 7, 8, 10)]
    assert rates == pytest.approx([1.0, 1.0, 2 / 3, 0.0], abs=1e-6)
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    with pytest.raises(InterruptedError):
        distil(teacher, Scenes(), tmp_path, seed=0, stop_at=1100.0, steps=10)
    now = 1085.0
    assert options["learning_rate"](0) == pytest.approx(LEARNING_RATE / 2)


def test_another_teacher_does_not_go_on_with_the_student_of_the_first(teacher, tmp_path):
    train(teacher, tmp_path, 1)
    with torch.no_grad():
        teacher.unet.conv_in.weight.mul_(1.5)
    other = replace(teacher, components=replace(teacher.components))
    source = Scenes()
    train(other, tmp_path, 1, source)
    assert source.requests == [(0, 0)] and len(list(tmp_path.glob("distil-*"))) == 2


def test_a_student_is_written_with_its_scheduler_and_warms_another(teacher, tmp_path):
    """diffusers opens the folder too. A warm start has its weights in float16, and counts on from its steps."""
    student, steps = distil(teacher, Scenes(), tmp_path, seed=0, stop_at=float("inf"), steps=2)
    write_student(tmp_path / "fast", teacher, student, steps)
    assert json.loads((tmp_path / "fast/model_index.json").read_text())["scheduler"] == ["diffusers", "LCMScheduler"]
    theirs = diffusers.LCMScheduler.from_pretrained(tmp_path / "fast", subfolder="scheduler")
    assert theirs.config.original_inference_steps == POINTS and theirs.config.timestep_scaling == 10
    counter = RowCounter()
    fast = minip2p.load(tmp_path / "fast")
    assert isinstance(fast.scheduler, LCMScheduler) and fast.default_guidance == 1.0
    run = fast.counting(counter).generate("a cat on the beach", steps=4, size=(64, 64))
    assert counter.rows == 4 and run.conditioning.sampler == "LCM"

    source = Scenes()
    warm, done = train(teacher, tmp_path / "warm", 2, warm_start=tmp_path / "fast")
    assert done == 2 and all(torch.equal(tensor, fast.unet.state_dict()[name]) for name, tensor in warm.items())
    _, done = train(teacher, tmp_path / "on", 3, source, warm_start=tmp_path / "fast")
    assert done == 3 and source.requests == [(2, 0)]


def test_a_teacher_that_predicts_v_is_refused(teacher, tmp_path):
    scheduler = DDIMScheduler(SchedulerConfig(prediction_type="v_prediction"))
    other = replace(teacher, components=replace(teacher.components, scheduler=scheduler))
    with pytest.raises(ValueError, match="the teacher must predict noise"):
        train(other, tmp_path, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--batch", "65"], "--batch must be a multiple of 64, not 65"),
        (["--steps", "-3"], "--steps must be at least 1, not -3"),
        (["--steps", "0"], "--steps must be at least 1, not 0"),
        (["--minutes", "0"], "--minutes must be a number above 0, not 0"),
        (["--minutes", "-1"], "--minutes must be a number above 0, not -1"),
        (["--minutes", "nan"], "--minutes must be a number above 0, not nan"),
        (["--workers", "-1"], "--workers must be at least 0 and --scenes at least 1, not -1 and 61440"),
        (["--workers", "1", "--scenes", "0"], "--workers must be at least 0 and --scenes at least 1, not 1 and 0"),
        (["--device", "cuda"], "--device cuda needs --workers, the number of processes that render scenes for it"),
        (["--device", "cuda", "--workers", "1"], "--device cuda: torch finds no NVIDIA GPU; use --device cpu"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill", "--out", str(tmp_path), *options])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distill.main() == 2
    assert message in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--model", "--warm"])
def test_a_folder_that_is_read_is_not_written(option, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill", option, str(tmp_path), "--out", f"{tmp_path}/../{tmp_path.name}"])
    assert distill.main() == 2
    assert f"is the folder of {option}, which would be overwritten" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_student_without_a_step_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distill, "fetch_sprites", lambda folder: None)
    monkeypatch.setattr(distill.Sprites, "load", lambda folder: None)
    monkeypatch.setattr(distill, "LatentCache", lambda *_: None)
    monkeypatch.setattr(distill, "CachedScenes", lambda *_, **__: None)
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--minutes", "1e-9"]
    monkeypatch.setattr(sys, "argv", ["distill", *arguments])
    assert distill.main() == 2
    error = "minip2p: error: the first step did not begin within --minutes 1e-09: give more time\n"
    assert capsys.readouterr().err == error and not (tmp_path / "out").exists()
