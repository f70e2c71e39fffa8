"""How one of many processes finds the others: the flags."""

import os
import sys

import jax
from absl import flags

from me_jax import preemption, processes

_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'This is one of the processes of a TPU pod, or of a job of SLURM, Kubernetes '
  'or Open MPI: JAX finds the others.',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'Where JAX cannot: HOST:PORT of process 0, free there and open to all.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'With --coordinator_address: how many.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id',
  None,
  'With --coordinator_address: which one this is, from 0.',
  lower_bound=0,
)
_PROCESS_TIMEOUT = flags.DEFINE_integer(
  'process_timeout',
  100,
  'Seconds without a sign of life of one of many processes, after which all '
  'others stop.',
  lower_bound=1,
)


def start() -> None:
  """Joins the other processes, if there are any, and listens for SIGTERM.

  Belongs before all that touches a device. What is printed is printed by
  process 0, once.

  Raises:
    ValueError: A flag is missing.
    RuntimeError: The others were not found.
  """
  by_hand = {
    'coordinator_address': _COORDINATOR.value,
    'num_processes': _NUM_PROCESSES.value,
    'process_id': _PROCESS_ID.value,
  }
  missing = [name for name, value in by_hand.items() if value is None]
  if 0 < len(missing) < len(by_hand):
    raise ValueError(
      f'Of many processes each is told --{", --".join(by_hand)}; there is no '
      f'--{", --".join(missing)}.'
    )
  if _DISTRIBUTED.value or not missing:
    try:
      jax.distributed.initialize(
        **by_hand,
        cluster_detection_method=None if missing else 'deactivate',
        heartbeat_timeout_seconds=_PROCESS_TIMEOUT.value,
        shutdown_timeout_seconds=_PROCESS_TIMEOUT.value,
      )
    except jax.errors.JaxRuntimeError as e:
      raise RuntimeError(
        'The other processes were not found at '
        f'{_COORDINATOR.value or "the address that JAX found out"} '
        f'({str(e)[:200]}). All must be started, and be let through there.'
      ) from e
    processes.from_first(lambda: None)  # see `processes.meet`
  if not processes.is_first():
    sys.stdout = open(os.devnull, 'w')
  preemption.listen()
