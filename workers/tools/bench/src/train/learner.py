"""Trains the network of a learning curve with PyTorch: same weights, same pictures, same order. Reads one JSON object; writes
one line of {"holdout", "test"}, accuracies from 0 to 1, for the start and after each epoch."""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
request = json.load(sys.stdin)
layers, shape = request["net"]["layers"], [-1, request["net"]["channels"], request["net"]["side_px"], request["net"]["side_px"]]
images = torch.from_numpy(np.fromfile(request["images"], np.float32).reshape(shape))
labels = torch.tensor(request["labels"])
flat = torch.from_numpy(np.fromfile(request["weights"], np.float32))
weights, offset = [], 0
for l in (l for l in layers if l["op"] in ("conv", "linear")):
    sizes = [l["outs"], l["ins"] // l["groups"], l["kernel"], l["kernel"]] if l["op"] == "conv" else [l["outs"], l["ins"]]
    for size in (sizes, [l["outs"]]):
        count = math.prod(size)
        weights.append(flat[offset:offset + count].reshape(size).clone().requires_grad_())
        offset += count
assert offset == len(flat), f"the layers have {offset} weights, the file {len(flat)}"


def forward(x):
    remaining = iter(weights)
    for l in layers:
        if l["op"] == "conv":
            x = F.conv2d(x, next(remaining), next(remaining), l["stride"], l["pad"], groups=l["groups"])
        elif l["op"] == "linear":
            x = F.linear(x, next(remaining), next(remaining))
        elif l["op"] == "relu":
            x = F.relu(x)
        else:
            x = x.flatten(1)
    return x


def accuracy(indices):
    with torch.no_grad():
        predicted = torch.cat([forward(images[part]).argmax(1) for part in torch.tensor(indices).split(256)])
    return float((predicted == labels[indices]).double().mean())


def report():
    print(json.dumps({"holdout": accuracy(request["holdout"]), "test": accuracy(request["test"])}), flush=True)


rate, batch, epochs = request["learning_rate"], request["batch"], request["epochs"]
optimizer = torch.optim.SGD(weights, lr=rate, momentum=request["momentum"])
report()
for epoch, order in enumerate(request["orders"]):
    parts = torch.tensor(order).split(batch)
    for number, part in enumerate(parts):
        # The same schedule as Tributary: linear warm-up, then cosine decay.
        progress = (epoch + number / len(parts)) / epochs
        ratio = max(progress / 0.05, 0.01) if progress < 0.05 else 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95))
        optimizer.param_groups[0]["lr"] = rate * ratio
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images[part]), labels[part]).backward()
        optimizer.step()
    report()
