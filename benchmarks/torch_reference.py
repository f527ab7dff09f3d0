"""The rival: the same two steps in straightforward eager PyTorch.

Same networks with the same weights, same losses, priors, augmentation and optimizers;
the commands check first that both sides compute the same. Written as a good
PyTorch user would: batched, without host round trips in a step, teacher frozen,
optimizers fused, images in the channels-last layout (the faster one here).
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import networks
from dfkd_jax.models import registry


class LeNet5(nn.Module):
    def __init__(self, channels, conv_features=(6, 16), dense_features=(120, 84)):
        super().__init__()
        first, second = conv_features
        self.flat = (second, 5, 5)
        self.conv_1 = nn.Conv2d(channels, first, 5, padding=2)
        self.conv_2 = nn.Conv2d(first, second, 5)
        self.dense_1 = nn.Linear(second * 25, dense_features[0])
        self.dense_2 = nn.Linear(*dense_features)
        self.output = nn.Linear(dense_features[1], 10)

    def forward(self, images):
        hidden = F.max_pool2d(F.relu(self.conv_1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv_2(hidden)), 2)
        hidden = F.relu(self.dense_1(hidden.flatten(1)))
        features = self.dense_2(hidden)
        return features, self.output(F.relu(features))


class Cnn(nn.Module):
    def __init__(self, channels, features):
        super().__init__()
        sizes = (channels, *features)
        for place, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
            self.add_module(f"conv_{place}", nn.Conv2d(inputs, outputs, 3, padding=1))
        self.num_convolutions = len(features)
        self.flat = (features[-1], 4, 4)
        self.dense_1 = nn.Linear(math.prod(self.flat), 64)
        self.dense_2 = nn.Linear(64, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, images):
        for place in range(1, self.num_convolutions + 1):
            hidden = self.get_submodule(f"conv_{place}")(images)
            images = F.max_pool2d(F.relu(hidden), 2)
        features = self.dense_2(F.relu(self.dense_1(images.flatten(1))))
        return features, self.output(F.relu(features))


class _DenseLayers(nn.Module):
    """What both AlexNets end with; `conv_features` feed `flat` units."""

    def add_dense(self, dense_features, dropout_rate):
        sizes = (math.prod(self.flat), *dense_features)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
            self.add_module(f"dense_{index}", nn.Linear(inputs, outputs))
            self.add_module(f"bn_{5 + index}", nn.BatchNorm1d(outputs))
        self.output = nn.Linear(sizes[-1], 10)
        self.dropout = nn.Dropout(dropout_rate)

    def dense(self, hidden):
        hidden = self.bn_6(self.dropout(F.relu(self.dense_1(hidden.flatten(1)))))
        features = self.dense_2(hidden)
        return features, self.output(self.bn_7(self.dropout(F.relu(features))))


class AlexNet(_DenseLayers):
    def __init__(
        self,
        channels,
        conv_features=(48, 128, 192, 192, 128),
        dense_features=(512, 256),
        dropout_rate=0.5,
    ):
        super().__init__()
        self.flat = (conv_features[-1], 3, 3)
        sizes = (channels, *conv_features)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
            side = 5 if index <= 2 else 3
            conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)
            self.add_module(f"conv_{index}", conv)
            self.add_module(f"bn_{index}", nn.BatchNorm2d(outputs))
        # PyTorch divides alpha by the size.
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=1.0)
        self.add_dense(dense_features, dropout_rate)

    def forward(self, images):
        hidden = self.norm(F.relu(self.conv_1(images)))
        hidden = self.bn_1(F.max_pool2d(hidden, 3, 2))
        hidden = self.norm(F.relu(self.conv_2(hidden)))
        hidden = self.bn_2(F.max_pool2d(hidden, 3, 2))
        hidden = self.bn_3(F.relu(self.conv_3(hidden)))
        hidden = self.bn_4(F.relu(self.conv_4(hidden)))
        hidden = self.bn_5(F.max_pool2d(F.relu(self.conv_5(hidden)), 3, 2))
        return self.dense(hidden)


class AlexNetWang(_DenseLayers):
    def __init__(
        self,
        channels,
        conv_features=(64, 192, 384, 256, 256),
        dense_features=(4096, 4096),
        dropout_rate=0.5,
    ):
        super().__init__()
        self.flat = (conv_features[-1], 2, 2)
        sizes = (channels, *conv_features)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
            stride = 2 if index == 1 else 1
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            self.add_module(f"conv_{index}", conv)
            self.add_module(f"bn_{index}", nn.BatchNorm2d(outputs))
        self.add_dense(dense_features, dropout_rate)

    def forward(self, images):
        hidden = F.max_pool2d(F.relu(self.bn_1(self.conv_1(images))), 2)
        hidden = F.max_pool2d(F.relu(self.bn_2(self.conv_2(hidden))), 2)
        hidden = F.relu(self.bn_3(self.conv_3(hidden)))
        hidden = F.relu(self.bn_4(self.conv_4(hidden)))
        hidden = F.max_pool2d(F.relu(self.bn_5(self.conv_5(hidden))), 2)
        return self.dense(hidden)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn_2 = nn.BatchNorm2d(outputs)
        self.changes_shape = stride != 1 or inputs != outputs
        if self.changes_shape:
            self.shortcut_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut_bn = nn.BatchNorm2d(outputs)

    def forward(self, images):
        hidden = F.relu(self.bn_1(self.conv_1(images)))
        hidden = self.bn_2(self.conv_2(hidden))
        if self.changes_shape:
            images = self.shortcut_bn(self.shortcut_conv(images))
        return F.relu(hidden + images)


class ResNet(nn.Module):
    def __init__(self, channels, num_blocks, stage_features=(64, 128, 256, 512)):
        super().__init__()
        inputs = stage_features[0]
        self.conv_1 = nn.Conv2d(channels, inputs, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(inputs)
        self.blocks = []
        stages = zip(num_blocks, stage_features, strict=True)
        for stage, (count, outputs) in enumerate(stages, start=1):
            for block in range(1, count + 1):
                name = f"stage_{stage}_block_{block}"
                stride = 2 if stage > 1 and block == 1 else 1
                self.add_module(name, Block(inputs, outputs, stride))
                self.blocks.append(name)
                inputs = outputs
        self.output = nn.Linear(inputs, 10)

    def forward(self, images):
        hidden = F.relu(self.bn_1(self.conv_1(images)))
        for name in self.blocks:
            hidden = self.get_submodule(name)(hidden)
        features = hidden.mean((2, 3))
        return features, self.output(features)


CLASSES = {
    "benchmarks.networks:Cnn": Cnn,
    "lenet:LeNet5": LeNet5,
    "alexnet:AlexNet": AlexNet,
    "alexnet:AlexNetWang": AlexNetWang,
    "resnet:ResNet": ResNet,
}


def network(name, variables, *, channels, device, **arguments):
    """The network called `name` in `networks`, with the weights of our own."""
    path, fields = (networks.USERS | registry.NETWORKS)[name]
    module = CLASSES[path](channels, **(fields | arguments))
    with torch.no_grad():
        _load(module, variables["params"], variables.get("batch_stats", {}))
    return module.to(device, memory_format=_memory_format(module, device))


def _load(module, params, statistics):
    for name, values in params.items():
        child = module.get_submodule(name)
        if "kernel" in values:
            kernel = np.asarray(values["kernel"])
            if name == "dense_1":  # Flattened as height, width, channels there.
                channels, height, width = module.flat
                kernel = kernel.reshape(height, width, channels, -1)
                kernel = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[-1])
            order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            child.weight.copy_(_tensor(kernel.transpose(order)))
        if "scale" in values:
            child.weight.copy_(_tensor(values["scale"]))
            child.running_mean.copy_(_tensor(statistics[name]["mean"]))
            child.running_var.copy_(_tensor(statistics[name]["var"]))
        if "bias" in values:
            child.bias.copy_(_tensor(values["bias"]))
        elif not {"kernel", "scale"} & set(values):
            _load(child, values, statistics[name])


def _tensor(array):
    return torch.from_numpy(np.array(array))


def to_device(images, device, module):
    """NHWC NumPy images as a tensor in the layout in which `module` is faster there."""
    images = _tensor(images).to(device).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=_memory_format(module, device))


def _memory_format(module, device):
    """By measurement: on a CPU, AlexNet takes a third of the time channels first.

    LeNet-5 takes two thirds channels last.
    """
    first = torch.device(device).type == "cpu" and not isinstance(module, LeNet5 | Cnn)
    return torch.contiguous_format if first else torch.channels_last


class Synthesis:
    """Images under optimization.

    Args:
        teacher: Frozen here.
        grids: Where the images start: NHWC arrays, coarse to fine.
        labels: Soft labels.
        config: A `SynthesisConfig`.
        mean: Per channel.
        std: Per channel.
        device: "cpu" or "cuda".
        optimizer: Instead of Adam: parameters to a `torch.optim.Optimizer`.
    """

    def __init__(
        self, teacher, *, grids, labels, config, mean, std, device, optimizer=None
    ):
        self.teacher = teacher.eval().requires_grad_(False)
        self.params = [
            to_device(grid, device, teacher).requires_grad_() for grid in grids
        ]
        self.size = tuple(np.shape(grids[config.grid_factors.index(1)])[1:3])
        self.labels = _tensor(labels).to(device)
        self.config = config
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.objective = self.loss
        if optimizer is None:
            self.optimizer = torch.optim.Adam(
                self.params, lr=config.learning_rate, fused=True
            )
        else:
            self.optimizer = optimizer(self.params)

    def render(self):
        image = 0.0
        for grid in self.params:
            if grid.shape[2:] != self.size:
                grid = F.interpolate(grid, self.size, mode="bilinear")
            image = image + grid
        if self.config.pixel_bounds == "sigmoid":
            pixels = torch.sigmoid(image)
            image = (pixels - self.mean) / self.std
        return image

    def loss(self, y, x):
        """Sum over the images, which are seen through a shift by (y, x)."""
        config, images = self.config, self.render()
        seen = images
        if config.max_shift:
            seen = F.pad(images, (config.max_shift,) * 4, mode="replicate")
            height, width = self.size
            seen = seen[:, :, y : y + height, x : x + width]
        features, logits = self.teacher(seen)
        log_probs = F.log_softmax(logits / config.temperature, dim=1)
        loss = -(self.labels * log_probs).sum()
        loss = loss - config.activation_weight * features.abs().mean(1).sum()
        if config.total_variation:
            rows = images.diff(dim=2).abs().sum()
            columns = images.diff(dim=3).abs().sum()
            loss = loss + config.total_variation * (rows + columns)
        if config.l2:
            loss = loss + config.l2 * images.square().sum()
        return loss

    def step(self):
        """One optimizer step; the loss, as a tensor."""
        y, x = torch.randint(0, 2 * self.config.max_shift + 1, (2,)).tolist()
        self.optimizer.zero_grad()
        loss = self.objective(y, x)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Distillation:
    """A student under training.

    Args:
        student: Is trained.
        teacher: Frozen here.
        config: A `DistillationConfig`.
        device: "cpu" or "cuda".
        optimizer: Instead of AdamW: parameters to a `torch.optim.Optimizer`.
    """

    def __init__(self, student, teacher, *, config, device, optimizer=None):
        self.student = student.train()
        self.teacher = teacher.eval().requires_grad_(False)
        self.config = config
        self.device = device
        params = list(student.parameters())
        if optimizer is None:
            self.optimizer = torch.optim.AdamW(
                params,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                fused=True,
            )
        else:
            self.optimizer = optimizer(params)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, self._schedule if optimizer is None else lambda step: 1.0
        )

    def _schedule(self, step):
        """Linear warm-up, then cosine to 0, as a share of the peak."""
        warmup, total = self.config.warmup_steps, self.config.num_steps
        if step < warmup:
            return step / warmup
        return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2

    def augment(self, images, others):
        config, count = self.config, len(images)
        if config.mixup or config.cutmix:
            images = mix(
                images,
                others,
                *torch.rand(4, count, device=self.device),
                mixup=config.mixup,
                cutmix=config.cutmix,
            )
        if config.shift or config.affine or config.elastic:

            def normal(*shape):
                return torch.randn(count, *shape, device=self.device)

            images = warp(
                images,
                linear=torch.eye(2, device=self.device) + config.affine * normal(2, 2),
                shift=config.shift * normal(2),
                grid=config.elastic * normal(2, 4, 4),
            )
        return images

    def step(self, images, others):
        """One optimizer step on NHWC NumPy images; loss and agreement, as tensors."""
        with torch.no_grad():
            images = to_device(images, self.device, self.teacher)
            others = to_device(others, self.device, self.teacher)
            images = self.augment(images, others)
            _, teacher_logits = self.teacher(images)
        self.optimizer.zero_grad()
        _, logits = self.student(images)
        loss = self.loss(logits, teacher_logits)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().mean()
        return loss.detach(), agreement

    def loss(self, logits, teacher_logits):
        if self.config.loss == "l1":
            return F.l1_loss(logits, teacher_logits)
        if self.config.loss == "l2":
            return F.mse_loss(logits, teacher_logits)
        temperature = self.config.temperature
        targets = F.softmax(teacher_logits / temperature, dim=1)
        return temperature**2 * F.cross_entropy(logits / temperature, targets)


def mix(images, others, choice, weight, row, column, *, mixup, cutmix):
    """Mixup, CutMix or neither, by uniform random numbers `[batch]` each."""
    height, width = images.shape[2:]
    device = images.device
    side = weight.sqrt()

    def inside(center, size):
        places = torch.arange(size, device=device)
        return (places - center[:, None] * size).abs() < side[:, None] * size / 2

    patch = inside(row, height)[:, :, None] & inside(column, width)[:, None, :]
    cut = patch & ((choice >= mixup) & (choice < mixup + cutmix))[:, None, None]
    blend = torch.where((choice < mixup)[:, None, None], weight[:, None, None], cut)
    return torch.lerp(images, others, blend[:, None].to(images.dtype))


def warp(images, *, linear, shift, grid):
    """Images through a map of the plane (y, x): linear, shifted, and elastic.

    Args:
        images: `[batch, channels, height, width]`.
        linear: `[batch, 2, 2]`.
        shift: `[batch, 2]`, in pixels.
        grid: Displacements `[batch, 2, 4, 4]`, interpolated with Keys' cubic.
    """
    height, width = images.shape[2:]
    device = images.device
    last = torch.tensor([height - 1.0, width - 1.0], device=device)
    plane = torch.meshgrid(
        torch.arange(height, device=device),
        torch.arange(width, device=device),
        indexing="ij",
    )
    plane = torch.stack(plane, -1).to(images.dtype) - last / 2
    source = torch.einsum("bij,yxj->byxi", linear, plane)
    source = source + last / 2 + shift[:, None, None, :]
    source = source + torch.einsum(
        "yi,bkij,xj->byxk", _cubic(height, device), grid, _cubic(width, device)
    )
    # grid_sample wants (x, y) from -1 to 1.
    return F.grid_sample(
        images,
        (2 * source / last - 1).flip(-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )


def _cubic(size, device):
    """Weights `[size, 4]` by which four values are interpolated to `size`.

    Keys' kernel with a = -1/2; what falls outside counts nothing.
    """
    centers = (torch.arange(size, device=device) + 0.5) * 4 / size - 0.5
    distance = (centers[:, None] - torch.arange(4, device=device)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)
