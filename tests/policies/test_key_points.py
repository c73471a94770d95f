"""Key points of pictures: where a learned feature is."""

import torch

from ript.policies.vision import KeyPoints


def spots(rows: list[int], columns: list[int], size: int = 32) -> torch.Tensor:
    """Black pictures with a red spot of 3 x 3 pixels each."""
    pictures = torch.zeros(len(rows), size, size, 3, dtype=torch.uint8)
    for picture, y, x in zip(pictures, rows, columns, strict=True):
        picture[y - 1 : y + 2, x - 1 : x + 2, 0] = 255
    return pictures


def test_a_feature_that_is_bright_where_the_spot_is_is_found_there() -> None:
    """A network that passes the red channel on; the features' grid is a quarter of the picture's."""
    encoder = KeyPoints(1, 32, 32)
    with torch.no_grad():
        for layer, channels in ((encoder.features[0], 3), (encoder.features[2], 16), (encoder.features[4], 32)):
            middle = layer.kernel_size[0] // 2
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, middle, middle] = 1
            assert layer.in_channels == channels
        places = encoder(spots([4, 24, 12], [8, 4, 28]))
    expected = torch.tensor([[4, 8], [24, 4], [12, 28]]) / 4 / 7 * 2 - 1
    torch.testing.assert_close(places, expected, atol=0.1, rtol=0)


def test_it_learns_where_a_small_spot_is_in_a_few_steps() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = KeyPoints(8, 32, 32)
        model = torch.nn.Sequential(encoder, torch.nn.Linear(16, 2))
        places = torch.randint(2, 30, (200, 2))
        pictures = spots(places[:, 0].tolist(), places[:, 1].tolist())
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(80):
            rows = torch.arange(32) + 32 * (step % 4)  # of the first 128
            loss = (model(pictures[rows]) - places[rows] / 16 + 1).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            unseen = (model(pictures[128:]) - places[128:] / 16 + 1).square().mean()
    assert unseen < 0.02  # the mean of all places has 0.26


def test_large_pictures_are_made_smaller_and_oblong_ones_may_be() -> None:
    assert KeyPoints(3, 300, 200)(torch.zeros(2, 300, 200, 3, dtype=torch.uint8)).shape == (2, 6)
    assert KeyPoints(3, 20, 30)(torch.zeros(1, 20, 30, 3, dtype=torch.uint8)).shape == (1, 6)
