"""Where in the UNet does an edit keep the source? An edit at one place at a time: python examples/ablation.py"""

import minip2p
from minip2p import SiteFilter
from minip2p.metrics.image import psnr

pipe = minip2p.load()
run = pipe.generate("a pig on the grass", seed=1)
source, target = run.picture, "a sheep on the grass"
filters = {
    "everywhere": None,
    "on the way down": SiteFilter(places=("down",)),
    "in the middle": SiteFilter(places=("mid",)),
    "on the way up": SiteFilter(places=("up",)),
    "head 0 only": SiteFilter(heads=(0,)),
}
for name, sites in filters.items():
    options = {} if sites is None else {"sites": sites}
    edited = pipe.edit(run, target, cross_replace=0.8, self_replace=0.8, **options)
    print(f"{name:>16}: PSNR to the source {psnr(source, edited.picture):.1f} dB")
plain = pipe.edit(run, target, cross_replace=0, self_replace=0)
print(f"{'nowhere':>16}: PSNR to the source {psnr(source, plain.picture):.1f} dB")
