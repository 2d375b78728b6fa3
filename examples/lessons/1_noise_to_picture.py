# %% [markdown]
# # 1. A picture from noise
#
# **How can a network that only guesses noise make a picture?**
#
# Stable Diffusion has one network that does the work, the UNet. It gets a noisy picture $x_t$, a time $t$ that says
# how noisy it is, and a prompt. It returns $\varepsilon_\theta(x_t, t)$, its guess of the noise in $x_t$. In this
# lesson you write the loop that turns these guesses into a picture: DDIM (Song et al. 2020). Two formulas and ten
# lines are enough.
#
# The pictures here are *latents*: 4 channels of 16 × 16 numbers. A second network, the VAE, turns them into
# 128 × 128 pixels.

# %%
import matplotlib.pyplot as plt
import torch

import minip2p

pipe = minip2p.load()
torch.set_grad_enabled(False)
pipe

# %% [markdown]
# ## How much signal is left?
#
# The forward process mixes a picture $x_0$ with noise:
#
# $$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1 - \bar\alpha_t}\,\varepsilon$$
#
# $\bar\alpha_t$ falls from almost 1 (a clean picture) to almost 0 (pure noise). Sampling goes through a few of these
# times from right to left.

# %%
steps = 20
schedule = pipe.scheduler.steps(steps)  # for each step: t, ᾱ before it, ᾱ after it

fig, ax = plt.subplots(figsize=(6, 3))
ax.plot(pipe.scheduler.alphas_cumprod, label="signal, $\\bar\\alpha_t$")
ax.plot([step.t for step in schedule], [step.alpha_cumprod for step in schedule], "o", ms=4, label=f"the {steps} steps")
ax.set(xlabel="time t", ylabel="share of the variance", title="What is left of the picture at time t")
ax.legend()
plt.show()

# %% [markdown]
# ## One step
#
# From the guessed noise follows a guess of the whole picture: solve the equation above for $x_0$. Then mix that picture
# with the *same* noise again, at the next, slightly lower level. That is a DDIM step:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\,\varepsilon_\theta}{\sqrt{\bar\alpha_t}}, \qquad
# x_{t'} = \sqrt{\bar\alpha_{t'}}\,\hat x_0 + \sqrt{1 - \bar\alpha_{t'}}\,\varepsilon_\theta$$


# %%
def predicted_picture(x, eps, step):
    return (x - (1 - step.alpha_cumprod) ** 0.5 * eps) / step.alpha_cumprod**0.5


def ddim_step(x, eps, step):
    x0 = predicted_picture(x, eps, step)
    return step.alpha_cumprod_prev**0.5 * x0 + (1 - step.alpha_cumprod_prev) ** 0.5 * eps


# %% [markdown]
# ## Listening to the prompt
#
# The network guesses twice, with the prompt and with an empty one. *Classifier-free guidance* exaggerates the
# difference between the two by a factor $w$, here 4. Then the loop is complete. It starts from pure noise.

# %%
prompt, seed, w = "a red car on the street", 2, 4.0
words, nothing = pipe.text(prompt), pipe.text("")

x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
guesses = []
for step in schedule:
    eps_words = pipe.unet(x, step.t, words.tokens)
    eps_nothing = pipe.unet(x, step.t, nothing.tokens)
    eps = eps_nothing + w * (eps_words - eps_nothing)
    guesses.append(predicted_picture(x, eps, step))
    x = ddim_step(x, eps, step)


# %%
def decode(latents):
    """Pixels, rows columns 3 in [0, 1]."""
    return (pipe.components.decode(latents)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)


shown = [0, steps // 10, steps // 4, steps // 2, steps - 1]
fig, axes = plt.subplots(1, len(shown), figsize=(9, 2.2))
for ax, i in zip(axes, shown, strict=True):
    ax.imshow(decode(guesses[i]))
    ax.set(title=f"step {i + 1}", xticks=[], yticks=[])
fig.suptitle("What the network believes the picture is", y=1.05)
plt.show()

# %% [markdown]
# The first guess is a blur, something like the average of all pictures that fit. The layout comes first, the details
# last. Prompt-to-Prompt uses this order: the attention of the *early* steps decides where things are.
#
# minip2p's own sampler does the same as your loop, up to rounding:

# %%
run = pipe.generate(prompt, seed=seed, steps=steps, guidance_scale=w)
difference = (run.latents[-1] - x[0]).abs().max().item()
print(f"largest difference to pipe.generate: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# ## Exercise
#
# What does guidance do? Sample the same seed with $w$ = 1, 2, 4 and 8, and measure the standard deviation of the final
# latents. Before you run it: will it grow or shrink?

# %% tags=["hide-cell"]
scales = [1.0, 2.0, 4.0, 8.0]
runs = [pipe.generate(prompt, seed=seed, steps=steps, guidance_scale=scale) for scale in scales]
spread = [run.latents[-1].std().item() for run in runs]

fig, axes = plt.subplots(1, 4, figsize=(8, 2.4))
for ax, run, scale, std in zip(axes, runs, scales, spread, strict=True):
    ax.imshow(run.image)
    ax.set(title=f"w = {scale:g}\nstd {std:.2f}", xticks=[], yticks=[])
plt.show()
# Guidance extrapolates beyond the model's own guess: contrast and colours grow with w.
assert spread == sorted(spread)
