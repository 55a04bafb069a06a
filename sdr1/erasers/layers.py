"""Which of a UNet's layers and parameters a method changes, by the names that diffusers gives them."""

from __future__ import annotations

from typing import Any, Literal

import torch

Rule = Literal["kv", "attn2", "not-attn2", "noxattn", "attention", "all"]
"""`kv`: keys and values of cross-attention. `attn2`: all linear layers of cross-attention. `not-attn2`: every linear and
convolution layer but those. `noxattn`: every parameter but those of cross-attention, of the timestep's embedding and of the
output layers. `attention`: projections of self- and cross-attention. `all`: every parameter."""
_OUTSIDE = ("time_embedding.", "conv_norm_out.", "conv_out.")
_PROJECTIONS = (".to_q", ".to_k", ".to_v", ".to_out.0")


def kv(unet: Any) -> dict[str, torch.nn.Linear]:
    """Key and value projections of every cross-attention, by name; weights of shape (E, D) for text states of D."""
    return {
        name: module for name, module in unet.named_modules() if name.endswith((".attn2.to_k", ".attn2.to_v"))
    }


def cross_attentions(unet: Any) -> dict[str, Any]:
    """Every cross-attention, by name; its output, behind `to_out`, has shape (B, H x W, E)."""
    return {name: module for name, module in unet.named_modules() if name.endswith(".attn2")}


def transformer_layers(unet: Any) -> dict[str, torch.nn.Linear | torch.nn.Conv2d]:
    """Linear and convolution layers of all transformers, those that lead into them and out of them too, by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if ".attentions." in name and isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def select(unet: Any, rule: Rule) -> dict[str, torch.nn.Parameter]:
    """The parameters of a rule, by name, made to require a gradient; all others are made not to."""
    chosen = {
        f"{module}.{name}": parameter
        for module, held in unet.named_modules()
        for name, parameter in held.named_parameters(recurse=False)
        if _takes(rule, module, held, f"{module}.{name}")
    }
    unet.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def _takes(rule: Rule, module: str, held: Any, name: str) -> bool:
    layer = isinstance(held, torch.nn.Linear | torch.nn.Conv2d)
    if rule == "kv":
        return module.endswith((".attn2.to_k", ".attn2.to_v"))
    if rule == "attn2":
        return layer and ".attn2." in name
    if rule == "not-attn2":
        return layer and ".attn2." not in name
    if rule == "noxattn":
        return ".attn2." not in name and not name.startswith(_OUTSIDE)
    if rule == "attention":
        return module.endswith(_PROJECTIONS) and (".attn1." in name or ".attn2." in name)
    return True
