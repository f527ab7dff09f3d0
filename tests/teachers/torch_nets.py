"""PyTorch counterparts of our networks, as their users write them."""

import torch
from torch import nn
from torch.nn import functional


class LeNet5(nn.Module):
    def __init__(self, conv_features=(6, 16), dense_features=(120, 84)):
        super().__init__()
        first, second = conv_features
        self.conv1 = nn.Conv2d(1, first, 5, padding=2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.fc1 = nn.Linear(second * 5 * 5, dense_features[0])
        self.fc2 = nn.Linear(*dense_features)
        self.fc3 = nn.Linear(dense_features[1], 10)

    def forward(self, images):
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.fc1(hidden.flatten(1)))
        return self.fc3(functional.relu(self.fc2(hidden)))


class AlexNet(nn.Module):
    def __init__(
        self, conv_features=(48, 128, 192, 192, 128), dense_features=(512, 256)
    ):
        super().__init__()
        inputs = (3, *conv_features)
        for index, outputs in enumerate(conv_features, start=1):
            size = 5 if index <= 2 else 3
            conv = nn.Conv2d(inputs[index - 1], outputs, size, padding=size // 2)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
        self.lrn = nn.LocalResponseNorm(5, alpha=5e-4)
        self.pool = nn.MaxPool2d(3, 2)
        first, second = dense_features
        self.fc1 = nn.Linear(conv_features[-1] * 3 * 3, first)
        self.bn6 = nn.BatchNorm1d(first)
        self.fc2 = nn.Linear(first, second)
        self.bn7 = nn.BatchNorm1d(second)
        self.fc3 = nn.Linear(second, 10)
        self.dropout = nn.Dropout()

    def forward(self, images):
        hidden = self.lrn(functional.relu(self.conv1(images)))
        hidden = self.bn1(self.pool(hidden))
        hidden = self.lrn(functional.relu(self.conv2(hidden)))
        hidden = self.bn2(self.pool(hidden))
        hidden = self.bn3(functional.relu(self.conv3(hidden)))
        hidden = self.bn4(functional.relu(self.conv4(hidden)))
        hidden = self.bn5(self.pool(functional.relu(self.conv5(hidden))))
        hidden = self.bn6(self.dropout(functional.relu(self.fc1(hidden.flatten(1)))))
        hidden = self.bn7(self.dropout(functional.relu(self.fc2(hidden))))
        return self.fc3(hidden)


class AlexNetWang(nn.Module):
    def __init__(
        self, conv_features=(64, 192, 384, 256, 256), dense_features=(4096, 4096)
    ):
        super().__init__()
        layers = []
        inputs = (3, *conv_features)
        for index, outputs in enumerate(conv_features, start=1):
            stride = 2 if index == 1 else 1
            layers += [
                nn.Conv2d(inputs[index - 1], outputs, 3, stride=stride, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            if index in (1, 2, 5):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        first, second = dense_features
        self.fc1 = self._dense(conv_features[-1] * 2 * 2, first)
        self.fc2 = self._dense(first, second)
        self.fc3 = nn.Linear(second, 10)

    def _dense(self, inputs, outputs):
        return nn.Sequential(
            nn.Linear(inputs, outputs),
            nn.ReLU(),
            nn.Dropout(),
            nn.BatchNorm1d(outputs),
        )

    def forward(self, images):
        return self.fc3(self.fc2(self.fc1(self.features(images).flatten(1))))


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut_name = shortcut
        layers = [
            nn.Conv2d(inputs, outputs, 1, stride, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        same = stride == 1 and inputs == outputs
        self.add_module(shortcut, nn.Sequential(*([] if same else layers)))

    def forward(self, images):
        hidden = functional.relu(self.bn1(self.conv1(images)))
        hidden = self.bn2(self.conv2(hidden))
        return functional.relu(hidden + getattr(self, self.shortcut_name)(images))


class ResNet(nn.Module):
    """For CIFAR; named as in the code most used for it, or as in torchvision."""

    def __init__(self, num_blocks, torchvision=False):
        super().__init__()
        shortcut, self.output_name = (
            ("downsample", "fc") if torchvision else ("shortcut", "linear")
        )
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(num_blocks, start=1):
            outputs = 32 * 2**stage
            blocks = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                blocks.append(Block(inputs, outputs, stride, shortcut))
                inputs = outputs
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.add_module(self.output_name, nn.Linear(512, 10))

    def forward(self, images):
        hidden = functional.relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden = stage(hidden)
        return getattr(self, self.output_name)(hidden.mean((2, 3)))


class Custom(nn.Module):
    """Something of everything that a mapping file can say."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.gamma = nn.Parameter(torch.ones(6))
        self.norm = nn.BatchNorm1d(6 * 4 * 3)
        self.classifier = nn.ModuleList([nn.Linear(72, 72), nn.Linear(72, 8)])
        self.mixing = nn.Parameter(torch.ones(8, 10))
        self.auxiliary = nn.Linear(8, 2)

    def forward(self, images):
        hidden = self.stem(images)
        hidden = hidden + self.gamma[:, None, None] * self.depthwise(hidden)
        hidden = self.norm(functional.avg_pool2d(hidden, 2).flatten(1))
        hidden = functional.relu(self.classifier[0](hidden))
        return self.classifier[1](hidden) @ self.mixing


def randomized(network, seed=0):
    """In evaluation mode, with every parameter and statistic off its start."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            # PyTorch's own start lets images fade: deep networks see them all alike.
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    for own in ("gamma", "mixing"):
        if hasattr(network, own):
            nn.init.normal_(getattr(network, own))
    return network.eval()
