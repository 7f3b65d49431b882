"""Stepwise EM: an M-step after every minibatch, from a running average of expected statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.data.stream import SAMPLE_ROWS, Block, StreamedTable, held
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM, StepwiseEM
from ppl_gen.infer.em import run_em, start_given
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.obstacles import m_step_obstacle
from ppl_gen.infer.ordering import by_decreasing_weight
from ppl_gen.infer.progress import Progress
from ppl_gen.infer.route import em_obstacle, newton_reason
from ppl_gen.infer.run import Run
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.status import Interrupt, Status, interruptible
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.infer.streaming import engine_for, in_standard_units, unkept
from ppl_gen.program.lowering import How, Lowered, threads_for
from ppl_gen.program.program import Program

START_STEPS = 100  # of EM on the sample
CHUNK = 65_536
