"""The judge's network: what presence and colour are read from."""

import torch
from judges import random_judge


def test_colour_is_read_under_the_mask_only():
    network, features, cover = random_judge().network, torch.rand(1, 15, 8, 8), torch.zeros(1, 30, 8, 8)
    cover[:, 0, 2:4, 2:4] = 1
    changed = features + torch.rand(1, 15, 8, 8) * (1 - cover[:, :1])
    torch.testing.assert_close(network.colours(changed, cover)[:, 0], network.colours(features, cover)[:, 0])
    torch.testing.assert_close(network.colours(features, 0.1 * cover), network.colours(features, cover))


def test_presence_depends_on_the_densest_cells_as_well_as_on_the_area():
    network, cover = random_judge().network, torch.zeros(1, 30, 8, 8)
    with torch.no_grad():
        network.presence.weight.copy_(torch.tensor([[0.0, 1.0]]))
    cover[:, 0, 2:5, 2:5] = 1  # a small object, clearly visible
    cover[:, 1] = 0.2  # a large one, uncertain everywhere
    first, second = network.objects(cover)[0, :2]
    assert cover[:, 0].sum() < cover[:, 1].sum() and first > second
