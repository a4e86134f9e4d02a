"""One of several processes of tests/test_distributed.py: pretrains once for each environment and arguments given.

Several runs in one process, because starting processes takes most of the time of these tests.
"""

import json
import os
import sys

import torch

from training.pretrain import main as pretrain

if __name__ == "__main__":
    torch.set_num_threads(1)
    for run in json.loads(sys.argv[1]):
        os.environ.update(run["environment"])
        pretrain(run["arguments"])
