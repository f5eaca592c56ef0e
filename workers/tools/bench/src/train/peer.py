"""Measures the same networks with PyTorch on one thread. Reads {"net", "last", "steps"} as JSON lines; `last` is the number of
trained layers, counted from the output. Writes one line of {"step_ms", "forward_ms", "version"} for each: mean CPU time of a
step and of the forward pass alone, milliseconds."""

import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.parts = nn.ModuleList()
        for l in layers:
            if l["op"] == "conv":
                part = nn.Conv2d(l["ins"], l["outs"], l["kernel"], l["stride"], l["pad"], groups=l["groups"])
            elif l["op"] == "linear":
                part = nn.Linear(l["ins"], l["outs"])
            elif l["op"] == "norm":
                part = nn.BatchNorm2d(l["outs"])
            else:
                part = nn.Identity()
            self.parts.append(part)

    def forward(self, x):
        out = [x]
        for l, part in zip(self.layers, self.parts):
            a = out[l["from"][0]]
            op = l["op"]
            if op in ("conv", "linear", "norm"):
                y = part(a)
            elif op == "relu":
                y = F.relu(a)
            elif op == "relu6":
                y = F.relu6(a)
            elif op == "pool":
                y = F.max_pool2d(a, l["kernel"], l["stride"], l["pad"])
            elif op == "add":
                y = a + out[l["from"][1]]
            elif op == "mean":
                y = F.adaptive_avg_pool2d(a, 1).flatten(1)
            else:
                y = a.flatten(1)
            out.append(y)
        return out[-1]


for line in sys.stdin:
    request = json.loads(line)
    net, steps = request["net"], request["steps"]
    model = Net(net["layers"]).eval()
    trainable = [i for i, l in enumerate(net["layers"]) if l["op"] in ("conv", "linear")]
    first = trainable[-request["last"]]
    for i, part in enumerate(model.parts):
        for parameter in part.parameters():
            parameter.requires_grad = i >= first
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
    x = torch.randn(net["batch"], 3, net["side_px"], net["side_px"])
    y = torch.arange(net["batch"]) % 10

    def step():
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def forward():
        with torch.no_grad():
            model(x)

    times_ms = []
    for work in (step, forward):
        for _ in range(2):
            work()
        started = time.process_time()
        for _ in range(steps):
            work()
        times_ms.append((time.process_time() - started) * 1000 / steps)
    print(json.dumps({"step_ms": times_ms[0], "forward_ms": times_ms[1], "version": torch.__version__}), flush=True)
