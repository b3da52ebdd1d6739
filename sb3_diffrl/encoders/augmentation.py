"""Random crops and colours, each image's own, on the images' device."""

import torch as th


def crop_at(images: th.Tensor, top: th.Tensor, left: th.Tensor, size: tuple[int, int]) -> th.Tensor:
    """
    :param images: ``(B, C, H, W)``
    :param top: ``(B,)`` first row that is kept of each image
    :param left: ``(B,)`` first column
    :param size: height and width of what is kept
    :return: ``(B, C, *size)``
    """
    rows = top.unsqueeze(1) + th.arange(size[0], device=images.device)
    columns = left.unsqueeze(1) + th.arange(size[1], device=images.device)
    number = th.arange(len(images), device=images.device)
    kept = images[number[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return kept.permute(0, 3, 1, 2)


def random_crop(images: th.Tensor, size: tuple[int, int]) -> th.Tensor:
    """
    :param images: ``(B, C, H, W)``
    :param size: height and width of what is kept
    :return: ``(B, C, *size)``, each place equally likely
    """
    spare = [whole - kept + 1 for whole, kept in zip(images.shape[2:], size, strict=True)]
    top, left = (th.randint(n, images.shape[:1], device=images.device) for n in spare)
    return crop_at(images, top, left, size)


def color_jitter(images: th.Tensor, strength: float) -> th.Tensor:
    """
    Brightness, contrast and saturation multiplied by factors from ``1 - strength`` to ``1 +
    strength``, the same for all frames that an image stacks.

    :param images: ``(B, C, H, W)`` in [0, 1]; frames of three channels, or of one where ``C`` is no
        multiple of three
    :param strength: 0 (none) to 1
    :return: the same shape, in [0, 1]
    """
    shape = 3, len(images), 1, 1, 1, 1
    factors = 1 + strength * (2 * th.rand(shape, device=images.device) - 1)
    brightness, contrast, saturation = factors.unbind()
    n_channels = 3 if images.shape[1] % 3 == 0 else 1
    frames = images.unflatten(1, (-1, n_channels)) * brightness
    frames = th.lerp(frames.mean(dim=(2, 3, 4), keepdim=True), frames, contrast)
    frames = th.lerp(frames.mean(dim=2, keepdim=True), frames, saturation)
    return frames.clamp(0, 1).flatten(1, 2)
