"""Callbacks that spoil a resumed run, so that a test can ask whether `verify-resume` notices."""

import torch
from lightning import Callback


class ForgetsMoments(Callback):
    """A resumed run begins with the optimizer's momentum at zero."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step:
            for state in trainer.optimizers[0].state.values():
                state["exp_avg"].zero_()


class SkipsSamples(Callback):
    """A resumed run leaves out a global batch."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step:
            trainer.train_dataloader.consumed += pl_module.data.sequences


class NudgesWeights(Callback):
    """A resumed run begins with one number of one weight moved by the least there is."""

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step:
            values = next(pl_module.parameters()).data.view(-1)
            values[0] = torch.nextafter(values[0], torch.tensor(torch.inf))
