"""The progress of a whole sweep on standard error."""

import sys
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from sweep.estimate import images
from sweep.plan import Run
from sweep.worker import Message, is_sequel

FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"


class Bar:
    """A progress bar whose unit is the image pass, so that its estimate holds for runs of all sizes.

    Args:
        runs: those to do.
    """

    def __init__(self, runs: Sequence[Run]):
        self.work = {run: images(run) for run in runs}
        self.fraction = dict.fromkeys(runs, 0.0)
        self.over = self.failed = 0
        self.said: set[str] = set()  # reasons: a cause that many runs share is said once
        self.notes: dict[Run, str] = {}  # what holds a run up
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(total=sum(self.work.values()), bar_format=FORM, smoothing=0, mininterval=interval)
        self.bar.set_description_str(self._describe())

    def __call__(self, run: Run, message: Message) -> None:
        """Take in what a worker told about a run, or the pool about its worker."""
        self.notes.pop(run, None)
        if message.kind in ("busy", "silent"):
            self.notes[run] = "another process is at it" if message.kind == "busy" else message.reason
        over = message.kind in ("done", "failed")
        fraction = 1.0 if over else 0.95 * message.fraction
        more = self.work[run] * max(fraction - self.fraction[run], 0)
        self.bar.update(min(more, self.bar.total - self.bar.n))  # sums of fractions may end a rounding above the total
        self.fraction[run] = max(fraction, self.fraction[run])
        self.over += over
        self.failed += message.kind == "failed"
        if self.bar.desc != self._describe():
            self.bar.set_description_str(self._describe())
        if message.kind == "failed" and message.reason not in self.said and not is_sequel(message.reason):
            self.said.add(message.reason)
            self.bar.write(f"failed: {run.output_dir}: {message.reason}", file=sys.stderr)

    def _describe(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        notes = Counter(self.notes.values())
        noted = "".join(f", {text} ({count} run{'s' if count > 1 else ''})" for text, count in notes.items())
        return f"{self.over}/{len(self.work)} runs{failed}{noted}"

    def close(self) -> None:
        """Leave the bar as it is; full, if every run is over."""
        if self.over == len(self.work):
            self.bar.update(self.bar.total - self.bar.n)
        self.bar.close()
