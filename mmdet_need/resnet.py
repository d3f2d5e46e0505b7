"""Drop-in for mmdet 2.28.2's ``mmdet/models/backbones/resnet.py``: the same networks with two fused operations.

Where tpvformer is installed, ``tpvformer.ops`` computes a bottleneck's last addition and ReLU as one operation, and the
stem's pooling; it chooses the kernel by the tensor's device and by whether a gradient is needed. Without tpvformer,
PyTorch computes both. Parameter names and attributes are those of the stock file.

Legend: x (N,3,H,W) -> stage s of 1 to 4 at stride 2**(s+1), with 64 * 2**(s-1) * expansion channels.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch.utils.checkpoint as cp
from mmcv.cnn import build_conv_layer, build_norm_layer, build_plugin_layer
from mmcv.runner import BaseModule
from mmdet.models.builder import BACKBONES
from mmdet.models.utils import ResLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Cfg = Dict[str, Any]
_POSITIONS = ("after_conv1", "after_conv2", "after_conv3")


@functools.lru_cache(None)
def _tpvformer_ops() -> Any:
    """Return the module ``tpvformer.ops``; None where tpvformer is not installed."""
    if importlib.util.find_spec("tpvformer") is None:
        return None
    from tpvformer import ops

    return ops


def _add_relu(x: Tensor, shortcut: Tensor, relu: nn.Module) -> Tensor:
    """Return relu(x + shortcut); ``x`` may be overwritten."""
    ops = _tpvformer_ops()
    if ops is None or type(relu) is not nn.ReLU:
        return relu(x + shortcut)
    return ops.add_relu(x, shortcut)


class StemPool(nn.MaxPool2d):
    """The 3x3 pooling at stride 2 after the stem, by a fused kernel where that supports the input."""

    def __init__(self) -> None:
        super().__init__(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        ops = _tpvformer_ops()
        return super().forward(x) if ops is None else ops.max_pool(x)


class _Block(BaseModule):
    """The base of both blocks: their arguments, the names of norms, and activation checkpointing (``with_cp``)."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: Optional[nn.Module] = None,
        style: str = "pytorch",
        with_cp: bool = False,
        conv_cfg: Optional[Cfg] = None,
        norm_cfg: Cfg = dict(type="BN"),  # noqa: B006, C408 - never changed
        dcn: Optional[Cfg] = None,
        plugins: Optional[List[Cfg]] = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        assert style in ("pytorch", "caffe"), f"style is {style!r}; expected 'pytorch' or 'caffe'"
        assert dcn is None or isinstance(dcn, dict), f"dcn is {dcn!r}; expected a dict or None"
        assert plugins is None or isinstance(plugins, list), f"plugins is {plugins!r}; expected a list or None"
        self.inplanes, self.planes, self.stride, self.dilation = inplanes, planes, stride, dilation
        self.style, self.with_cp, self.conv_cfg, self.norm_cfg = style, with_cp, conv_cfg, norm_cfg
        self.dcn, self.with_dcn = dcn, dcn is not None
        self.plugins, self.with_plugins = plugins, plugins is not None
        self._add_convolutions()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins()

    def _add_convolutions(self) -> None:
        raise NotImplementedError

    def _add_plugins(self) -> None:
        """Do nothing: only a Bottleneck has plugins."""

    def _add(self, number: int, cfg: Optional[Cfg], channels: int, out: int, kernel: int, **options: Any) -> None:
        """Add ``conv<number>`` with its norm, whose name depends on its type and is kept in ``norm<number>_name``."""
        name, norm = build_norm_layer(self.norm_cfg, out, postfix=number)
        self.add_module(f"conv{number}", build_conv_layer(cfg, channels, out, kernel, bias=False, **options))
        self.add_module(name, norm)
        setattr(self, f"norm{number}_name", name)

    @property
    def norm1(self) -> nn.Module:
        """The norm behind ``conv1``."""
        return getattr(self, self.norm1_name)

    @property
    def norm2(self) -> nn.Module:
        """The norm behind ``conv2``."""
        return getattr(self, self.norm2_name)

    def _sides(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return (the block's branch, its shortcut) before they are added."""
        raise NotImplementedError

    def _both(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """Return ``_sides``; with ``with_cp``, its activations are recomputed in the backward pass."""
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._sides, x, use_reentrant=False)
        return self._sides(x)


class BasicBlock(_Block):
    """Two 3x3 convolutions with a shortcut; ``planes`` output channels. DCN and plugins are refused."""

    expansion = 1

    def _add_convolutions(self) -> None:
        assert not self.with_dcn, "a BasicBlock has no deformable convolution; use depth 50 or more"
        assert not self.with_plugins, "a BasicBlock takes no plugins; use depth 50 or more"
        reach = self.dilation
        self._add(1, self.conv_cfg, self.inplanes, self.planes, 3, stride=self.stride, padding=reach, dilation=reach)
        self._add(2, self.conv_cfg, self.planes, self.planes, 3, padding=1)

    def _sides(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(out)), x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N,inplanes,H,W) -> (N,planes,H/stride,W/stride)."""
        branch, shortcut = self._both(x)
        return self.relu(branch + shortcut)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions with a shortcut; ``planes * 4`` output channels.

    ``style`` places the stride: "pytorch" in the 3x3, "caffe" in the first 1x1. ``dcn`` makes the 3x3 deformable. Its
    ``fallback_on_stride`` is removed by the first block that reads it, so only that block keeps an ordinary 3x3;
    published weights need this. ``plugins`` are dictionaries with ``cfg`` and a ``position``, after_conv1 to 3.
    """

    expansion = 4

    def _add_convolutions(self) -> None:
        for plugin in self.plugins or []:
            assert plugin["position"] in _POSITIONS, f"a plugin stands at {plugin['position']!r}; expected {_POSITIONS}"
        planes, reach, middle = self.planes, self.dilation, self.conv_cfg
        if self.with_dcn and not self.dcn.pop("fallback_on_stride", False):
            assert middle is None, "conv_cfg and dcn both choose the 3x3 convolution; expected one of them"
            middle = self.dcn
        self.conv1_stride, self.conv2_stride = (1, self.stride) if self.style == "pytorch" else (self.stride, 1)
        self._add(1, self.conv_cfg, self.inplanes, planes, 1, stride=self.conv1_stride)
        self._add(2, middle, planes, planes, 3, stride=self.conv2_stride, padding=reach, dilation=reach)
        self._add(3, self.conv_cfg, planes, planes * self.expansion, 1)

    def _add_plugins(self) -> None:
        channels = (self.planes, self.planes, self.planes * self.expansion)
        for position, width in zip(_POSITIONS, channels) if self.with_plugins else ():
            chosen = [plugin["cfg"] for plugin in self.plugins if plugin["position"] == position]
            setattr(self, f"{position}_plugins", chosen)
            setattr(self, f"{position}_plugin_names", self.make_block_plugins(width, chosen))

    def make_block_plugins(self, in_channels: int, plugins: List[Cfg]) -> List[str]:
        """Build and add ``plugins`` (their ``cfg`` dictionaries) and return the names of the new sub-modules."""
        assert isinstance(plugins, list), f"plugins is {plugins!r}; expected a list"
        names = []
        for plugin in plugins:
            settings = dict(plugin)
            postfix = settings.pop("postfix", "")
            name, layer = build_plugin_layer(settings, in_channels=in_channels, postfix=postfix)
            assert not hasattr(self, name), f"two plugins are called {name!r}; give one a postfix"
            self.add_module(name, layer)
            names.append(name)
        return names

    def forward_plugin(self, x: Tensor, plugin_names: Sequence[str]) -> Tensor:
        """Pass ``x`` through the named sub-modules in order."""
        for name in plugin_names:
            x = getattr(self, name)(x)
        return x

    @property
    def norm3(self) -> nn.Module:
        """The norm behind ``conv3``."""
        return getattr(self, self.norm3_name)

    def _plug(self, x: Tensor, position: str) -> Tensor:
        return self.forward_plugin(x, getattr(self, f"{position}_plugin_names")) if self.with_plugins else x

    def _sides(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        out = self._plug(self.relu(self.norm1(self.conv1(x))), "after_conv1")
        out = self._plug(self.relu(self.norm2(self.conv2(out))), "after_conv2")
        out = self._plug(self.norm3(self.conv3(out)), "after_conv3")
        return out, x if self.downsample is None else self.downsample(x)

    def forward(self, x: Tensor) -> Tensor:
        """(N,inplanes,H,W) -> (N,planes*4,H/stride,W/stride)."""
        branch, shortcut = self._both(x)
        if self.with_plugins:  # what a plugin returns may be needed elsewhere
            return self.relu(branch + shortcut)
        return _add_relu(branch, shortcut, self.relu)


@BACKBONES.register_module()
class ResNet(BaseModule):
    """Compute the feature maps of the stages ``out_indices`` (0 is the first) from images.

    Depths are those of ``arch_settings``. ``frozen_stages`` -1 freezes nothing, 0 the stem, s also the first s stages.
    With ``norm_eval`` every batch norm keeps its statistics in training. ``deep_stem`` (three 3x3 convolutions) and
    ``avg_down`` (pooled shortcuts) make ResNetV1d. ``stage_with_dcn`` selects the stages of ``dcn``, a plugin's
    ``stages`` those of the plugin. ``pretrained`` is the old form of ``init_cfg``.
    """

    arch_settings = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: Optional[int] = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: Optional[Cfg] = None,
        norm_cfg: Cfg = dict(type="BN", requires_grad=True),  # noqa: B006, C408 - never changed
        norm_eval: bool = True,
        dcn: Optional[Cfg] = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: Optional[List[Cfg]] = None,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: Optional[str] = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in self.arch_settings:
            raise KeyError(f"a ResNet of depth {depth} is unknown; expected one of {sorted(self.arch_settings)}")
        assert 1 <= num_stages <= 4, f"num_stages is {num_stages}; expected 1 to 4"
        assert len(strides) == len(dilations) == num_stages, f"expected {num_stages} strides and as many dilations"
        assert max(out_indices) < num_stages, f"out_indices are {out_indices}; expected numbers below {num_stages}"
        assert dcn is None or len(stage_with_dcn) == num_stages, f"expected {num_stages} entries in stage_with_dcn"
        self.zero_init_residual = zero_init_residual
        self.depth, self.num_stages, self.base_channels = depth, num_stages, base_channels
        self.stem_channels = base_channels if stem_channels is None else stem_channels
        self.strides, self.dilations, self.out_indices = strides, dilations, out_indices
        self.style, self.deep_stem, self.avg_down = style, deep_stem, avg_down
        self.frozen_stages, self.norm_eval, self.with_cp = frozen_stages, norm_eval, with_cp
        self.conv_cfg, self.norm_cfg, self.plugins = conv_cfg, norm_cfg, plugins
        self.dcn, self.stage_with_dcn = None if dcn is None else dict(dcn), stage_with_dcn
        self.block, blocks = self.arch_settings[depth]
        self.stage_blocks = blocks[:num_stages]
        self.inplanes = self.stem_channels
        block_init_cfg = self._choose_init(pretrained, init_cfg)

        self._make_stem_layer(in_channels, self.stem_channels)
        self.res_layers = []
        for stage, count in enumerate(self.stage_blocks):
            planes = base_channels * 2**stage
            layer = self.make_res_layer(
                block=self.block,
                inplanes=self.inplanes,
                planes=planes,
                num_blocks=count,
                stride=strides[stage],
                dilation=dilations[stage],
                style=style,
                avg_down=avg_down,
                with_cp=with_cp,
                conv_cfg=conv_cfg,
                norm_cfg=norm_cfg,
                dcn=self.dcn if dcn is not None and stage_with_dcn[stage] else None,
                plugins=None if plugins is None else self.make_stage_plugins(plugins, stage),
                init_cfg=block_init_cfg,
            )
            self.inplanes = planes * self.block.expansion
            self.add_module(f"layer{stage + 1}", layer)
            self.res_layers.append(f"layer{stage + 1}")
        self._freeze_stages()
        self.feat_dim = self.block.expansion * base_channels * 2 ** (len(self.stage_blocks) - 1)

    def _choose_init(self, pretrained: Optional[str], init_cfg: Any) -> Optional[Cfg]:
        """Set ``init_cfg`` where it is None and return the ``init_cfg`` of a block: its last norm at 0, or None."""
        assert not (init_cfg and pretrained), "init_cfg and pretrained say the same thing; expected one of them"
        if isinstance(pretrained, str):
            message = "pretrained is deprecated; use init_cfg=dict(type='Pretrained', ...)"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            self.init_cfg = {"type": "Pretrained", "checkpoint": pretrained}
            return None
        if pretrained is not None:
            raise TypeError(f"pretrained is {pretrained!r}; expected a path or None")
        if init_cfg is not None:
            return None
        norms = {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]}
        self.init_cfg = [{"type": "Kaiming", "layer": "Conv2d"}, norms]
        # in subclasses this norm starts at 1, as in their published training
        last = {BasicBlock: "norm2", Bottleneck: "norm3"}.get(self.block)
        if last is None or not self.zero_init_residual:
            return None
        return {"type": "Constant", "val": 0, "override": {"name": last}}

    def make_stage_plugins(self, plugins: List[Cfg], stage_idx: int) -> List[Cfg]:
        """Return the plugins of one stage, without their ``stages``."""
        chosen = []
        for plugin in plugins:
            stages = plugin.get("stages")
            assert stages is None or len(stages) == self.num_stages, f"expected {self.num_stages} entries in stages"
            if stages is None or stages[stage_idx]:
                chosen.append({key: value for key, value in plugin.items() if key != "stages"})
        return chosen

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Build one stage; subclasses build theirs of other blocks."""
        return ResLayer(**kwargs)

    @property
    def norm1(self) -> nn.Module:
        """The norm of a stem with one convolution."""
        return getattr(self, self.norm1_name)

    def _conv(self, channels: int, out: int, kernel: int, stride: int) -> nn.Module:
        return build_conv_layer(self.conv_cfg, channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        if self.deep_stem:
            half = stem_channels // 2
            parts: List[nn.Module] = []
            for channels, out, stride in ((in_channels, half, 2), (half, half, 1), (half, stem_channels, 1)):
                parts += [self._conv(channels, out, 3, stride), build_norm_layer(self.norm_cfg, out)[1]]
                parts.append(nn.ReLU(inplace=True))
            self.stem = nn.Sequential(*parts)
        else:
            self.conv1 = self._conv(in_channels, stem_channels, 7, 2)
            self.norm1_name, norm = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
            self.add_module(self.norm1_name, norm)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = StemPool()

    def _freeze_stages(self) -> None:
        """Turn off gradients of the frozen part and put its norms (deep stem, stages: all of it) in eval mode."""
        if self.frozen_stages < 0:
            return
        parts = [self.stem] if self.deep_stem else [self.norm1, self.conv1]
        stages = [getattr(self, f"layer{number}") for number in range(1, self.frozen_stages + 1)]
        for part in [parts[0], *stages]:
            part.eval()
        for part in parts + stages:
            for parameter in part.parameters():
                parameter.requires_grad = False

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """(N,in_channels,H,W) -> one map for each of ``out_indices``."""
        x = self.stem(x) if self.deep_stem else self.relu(self.norm1(self.conv1(x)))
        x = self.maxpool(x)
        maps = []
        for stage, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if stage in self.out_indices:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> "ResNet":
        """Set the mode of all modules except the frozen ones and, under ``norm_eval``, batch norms."""
        super().train(mode)
        self._freeze_stages()
        for module in self.modules() if mode and self.norm_eval else ():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


@BACKBONES.register_module()
class ResNetV1d(ResNet):
    """ResNet with a deep stem and pooled shortcuts (Bag of Tricks, arXiv:1812.01187)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(deep_stem=True, avg_down=True, **kwargs)
