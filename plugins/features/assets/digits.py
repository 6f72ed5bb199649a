"""Trains the network of the feature space `digits` and writes `digits.safetensors` beside this file.

Usage: python digits.py      (torch 2.15.0 and safetensors; about one minute on one core)

The network is a classifier of the dataset `digits`. It is trained on the first 1,500 images, with shifts of up to one
pixel, and tested on the other 297.
"""

import csv
import gzip
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = torch.nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.hidden = torch.nn.Linear(64 * 4 * 4, 64)
        self.classes = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        spatial = F.relu(self.conv3(x))
        features = F.relu(self.hidden(spatial.flatten(1)))
        return features, spatial, self.classes(features)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with gzip.open(HERE / "../../data/assets/digits.csv.gz", "rt") as file:
        rows = torch.tensor([[float(v) for v in row] for row in csv.reader(file)])
    images, classes = rows[:, :64].reshape(-1, 1, 8, 8) / 8 - 1, rows[:, 64].long()
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = 2000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(0, 1500, (128,))
        padded = F.pad(images[chosen], (1, 1, 1, 1), value=-1.0)
        top, left = torch.randint(0, 3, (2,)).tolist()
        _, _, logits = network(padded[:, :, top : top + 8, left : left + 8])
        loss = F.cross_entropy(logits, classes[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        right = (network(images[1500:])[2].argmax(1) == classes[1500:]).float().mean().item()
        features, spatial, logits = network(images[:3])
    print(f"{right:.4f} of the test images are classified correctly")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    # Results on the first three images, which a test compares with ours.
    weights |= {"test.features": features, "test.spatial": spatial[:, :4].contiguous(), "test.logits": logits}
    save_file(weights, HERE / "digits.safetensors", {"test_accuracy": f"{right:.4f}"})


if __name__ == "__main__":
    main()
