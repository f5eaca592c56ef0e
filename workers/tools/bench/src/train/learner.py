"""The peer of the learning curve: the same network from the same weights on the same pictures in the same order, trained by
PyTorch. Reads one JSON object, writes one line of {"held_out", "test"} (shares that are right) for the start and each epoch."""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)
asked = json.load(sys.stdin)
layers, shape = asked["net"]["layers"], [-1, asked["net"]["channels"], asked["net"]["side_px"], asked["net"]["side_px"]]
images = torch.from_numpy(np.fromfile(asked["images"], np.float32).reshape(shape))
labels = torch.tensor(asked["labels"])
flat = torch.from_numpy(np.fromfile(asked["weights"], np.float32))
weights, at = [], 0
for l in (l for l in layers if l["op"] in ("conv", "linear")):
    sizes = [l["outs"], l["ins"] // l["groups"], l["kernel"], l["kernel"]] if l["op"] == "conv" else [l["outs"], l["ins"]]
    for size in (sizes, [l["outs"]]):
        count = math.prod(size)
        weights.append(flat[at:at + count].reshape(size).clone().requires_grad_())
        at += count
assert at == len(flat), f"{at} of {len(flat)} weights"


def forward(x):
    own = iter(weights)
    for l in layers:
        if l["op"] == "conv":
            x = F.conv2d(x, next(own), next(own), l["stride"], l["pad"], groups=l["groups"])
        elif l["op"] == "linear":
            x = F.linear(x, next(own), next(own))
        elif l["op"] == "relu":
            x = F.relu(x)
        else:
            x = x.flatten(1)
    return x


def right(places):
    with torch.no_grad():
        found = torch.cat([forward(images[part]).argmax(1) for part in torch.tensor(places).split(256)])
    return float((found == labels[places]).double().mean())


def say():
    print(json.dumps({"held_out": right(asked["held_out"]), "test": right(asked["test"])}), flush=True)


rate, batch, epochs = asked["learning_rate"], asked["batch"], asked["epochs"]
optimizer = torch.optim.SGD(weights, lr=rate, momentum=asked["momentum"])
say()
for epoch, order in enumerate(asked["orders"]):
    parts = torch.tensor(order).split(batch)
    for number, part in enumerate(parts):
        done = (epoch + number / len(parts)) / epochs
        ratio = max(done / 0.05, 0.01) if done < 0.05 else 0.5 * (1 + math.cos(math.pi * (done - 0.05) / 0.95))
        optimizer.param_groups[0]["lr"] = rate * ratio
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(forward(images[part]), labels[part]).backward()
        optimizer.step()
    say()
