"""The reference for training: one process, plain PyTorch, no Ray and no DeepSpeed, the whole batch at once."""

import torch

from cinemo import checkpoint
from cinemo.residual import training_loss
from pipelines import dataset, train, train_loop


def plain_losses(config: train.TrainConfig, steps: int) -> list[float]:
    """Losses of the first steps of a run."""
    source = config.source
    unet = train_loop.load_unet(config, source)
    optimizer = torch.optim.Adam(unet.parameters(), lr=config.learning_rate)
    schedule = checkpoint.load_scheduler(source)
    clips = dataset.ClipReader(config.dataset)
    embed = train_loop.text_features(source, torch.device("cpu"))
    losses = []
    for step in range(steps):
        positions = dataset.batch_positions(len(clips), config.total_batch, config.seed, step)
        batch = [clips[position] for position in positions]
        inputs = train_loop.draw_batch(config, step, batch, embed, train_loop.UNIFORM_MOTION, 1000)
        loss = training_loss(unet, *inputs, schedule.alphas_cumprod)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), config.grad_clip)
        optimizer.param_groups[0]["lr"] = config.learning_rate * min(1, (step + 1) / config.warmup_steps)
        optimizer.step()
        losses.append(loss.item())
    return losses
