"""Lightning's training loop, which also resumes a run that was killed after its last step."""

from lightning import Trainer
from lightning.pytorch.loops import _FitLoop


class FitLoop(_FitLoop):
    """The loop of ``trainer``, for a checkpoint with all steps done and the last validation still to run.

    Lightning's own loop returns at once on such a resume: it runs no validation and no ``on_train_start``, which
    restores the metrics of an earlier validation.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer, min_epochs=trainer.fit_loop.min_epochs, max_epochs=trainer.fit_loop.max_epochs)
        self.epoch_loop = trainer.fit_loop.epoch_loop

    def run(self) -> None:
        self.setup_data()
        if not (self.restarting and self.skip):
            super().run()
            return
        self.reset()
        self.on_run_start()
        if self.epoch_loop._should_check_val_fx(self._data_fetcher):
            self.epoch_loop.on_advance_end(self._data_fetcher)
        self.on_run_end()
