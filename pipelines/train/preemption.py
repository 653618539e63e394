"""Notices that a machine of the run will be taken away, as spot machines are: a reason to make a checkpoint now."""

import time

import ray.train
import torch
import torch.distributed

EVERY_S = 2.0  # between two looks, each of which waits for all workers; clouds give half a minute to two minutes


class Preemption:
    """Asks Ray Train for notices, every EVERY_S seconds or once a step, whichever is longer."""

    def __init__(self, device: torch.device, first_step: int) -> None:
        """first_step: number of steps that the run had taken when this worker started."""
        self.device = device
        self.nodes: set[str] = set()  # whose notices are known
        self.looked_at, self.looked_after, self.next = time.monotonic(), first_step, first_step

    def is_new(self, step: int) -> bool:
        """Whether there is a new notice; every worker calls this after each step, and all get the same answer."""
        if step < self.next:
            return False
        info = ray.train.get_preemption_info()
        now = time.monotonic()
        seconds = torch.tensor((now - self.looked_at) / max(1, step - self.looked_after), device=self.device)
        torch.distributed.all_reduce(seconds, torch.distributed.ReduceOp.MAX)  # all have to look after the same step
        self.looked_at, self.looked_after = now, step
        self.next = step + max(1, int(EVERY_S / max(1e-3, seconds.item())))
        nodes = set() if info is None else set(info.preempted_node_ids)
        new = not nodes <= self.nodes
        self.nodes |= nodes
        return new
