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
    strength``.

    :param images: ``(B, C, H, W)`` in [0, 1]
    :param strength: 0 (none) to 1
    :return: the same shape, in [0, 1]
    """
    shape = 3, len(images), 1, 1, 1
    factors = 1 + strength * (2 * th.rand(shape, device=images.device) - 1)
    brightness, contrast, saturation = factors.unbind()
    images = images * brightness
    images = th.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, contrast)
    return th.lerp(images.mean(dim=1, keepdim=True), images, saturation).clamp(0, 1)
