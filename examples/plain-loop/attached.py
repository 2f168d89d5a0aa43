"""The loop of train.py, watched by two lines of its own."""

from __future__ import annotations

from train import arguments, build, loss_of

import trainscope

args = arguments()
model, optimizer, scheduler, average = build(args)
known = {"train.steps": args.steps}
with trainscope.attach(model, optimizer, average, scheduler, name="plain-loop", config=known) as watch:
    for _ in range(args.steps):
        loss = loss_of(model)
        watch.loss(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        average.update_parameters(model)
print(watch.path)
