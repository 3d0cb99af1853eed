"""Checks of arguments that all operations share: each raises one line that names both sides."""

import torch

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_floats(operation: str, **tensors: torch.Tensor) -> None:
    """Raise TypeError unless every tensor is float16, bfloat16, float32 or float64."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            raise TypeError(
                f"{operation} takes float16, bfloat16, float32 or float64 tensors: {name} is {plain(tensor.dtype)}"
            )


def require_same_dtype(operation: str, **tensors: torch.Tensor) -> None:
    """Raise TypeError unless all the tensors have one dtype."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise TypeError(
                f"{operation} takes one dtype: {first_name} is {plain(first.dtype)}, "
                f"{name} is {plain(tensor.dtype)}; convert one of them"
            )


def require_same_place(operation: str, **tensors: torch.Tensor) -> None:
    """Raise ValueError unless all the tensors have one shape and one device."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(
                f"{operation} takes one shape: {first_name} is {tuple(first.shape)}, {name} is {tuple(tensor.shape)}"
            )
    require_same_device(operation, **tensors)


def require_matrix(operation: str, **tensors: torch.Tensor) -> None:
    """Raise ValueError unless every tensor has two axes."""
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            raise ValueError(f"{operation} takes matrices: {name} has the shape {tuple(tensor.shape)}")


def require_shape(operation: str, shape: tuple[int, ...], **tensors: torch.Tensor) -> None:
    """Raise ValueError unless every tensor has this shape."""
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{operation} takes {name} of shape {tuple(shape)}: it has shape {tuple(tensor.shape)}")


def require_dtype(operation: str, dtype: torch.dtype, **tensors: torch.Tensor) -> None:
    """Raise TypeError unless every tensor has this dtype."""
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{operation} takes {name} as {plain(dtype)}: it is {plain(tensor.dtype)}")


def require_same_device(operation: str, **tensors: torch.Tensor) -> None:
    """Raise ValueError unless all the tensors are on one device."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(
                f"{operation} takes tensors of one device: {first_name} is on {first.device}, "
                f"{name} is on {tensor.device}"
            )


def plain(dtype: torch.dtype) -> str:
    """The dtype's name without the package's."""
    return str(dtype).removeprefix("torch.")
