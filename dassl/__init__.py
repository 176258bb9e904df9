"""The engine: configuration, data, training loop, evaluation. It knows no CLIP and no method.

The public surface is that of Dassl 0.6.3 as far as few-shot vision-language code uses it, so trainers and data sets
written for it run here unmodified. Importing the engine registers nothing: trainers and data sets register themselves
when *their* modules are imported.
"""

from dassl.output import log_to_stdout

__version__ = "0.6.3"

log_to_stdout("dassl")
