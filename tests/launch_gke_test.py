"""Manifests for Kubernetes: hosts, chips, restarts and the volume agree."""

import math
import pathlib
import re

import kubernetes_validate
import yaml

from me_jax import preemption

_LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'


def _manifest(name, *kinds):
  documents = list(yaml.safe_load_all((_LAUNCH / name).read_text()))
  assert [(d['apiVersion'], d['kind']) for d in documents] == list(kinds)
  return documents


def _job():
  """The JobSet, and its only job."""
  (jobs,) = _manifest('gke.yaml', ('jobset.x-k8s.io/v1alpha2', 'JobSet'))
  (replicated,) = jobs['spec']['replicatedJobs']
  assert replicated['replicas'] == 1
  return jobs, replicated['template']['spec']


def test_gke_places_a_pod_on_each_host_of_a_slice():
  _, job = _job()
  pod = job['template']['spec']
  (container,) = pod['containers']
  selector = pod['nodeSelector']
  assert set(selector) == {
    'cloud.google.com/gke-tpu-accelerator',
    'cloud.google.com/gke-tpu-topology',
  }
  topology = selector['cloud.google.com/gke-tpu-topology'].split('x')
  chips = math.prod(map(int, topology))
  per_host = container['resources']['limits']['google.com/tpu']
  hosts = job['completions']
  assert hosts == job['parallelism'] > 1
  assert hosts * per_host == chips
  assert job['completionMode'] == 'Indexed'

  flags = dict(
    arg.removeprefix('--').partition('=')[::2] for arg in container['args']
  )
  assert container['command'] == ['python', '-m', 'launch.run']
  assert 'distributed' in flags
  assert math.prod(map(int, flags['mesh'].split('x'))) == chips
  config = flags['config'].partition(':')[0]
  assert (_LAUNCH.parent / config).is_file()


def test_the_schemas_of_kubernetes():
  """JobSet has none here: of what it starts, the job."""
  jobs, job = _job()
  whole = {'apiVersion': 'batch/v1', 'kind': 'Job', 'spec': job}
  for document in (
    {**whole, 'metadata': jobs['metadata']},
    *yaml.safe_load_all((_LAUNCH / 'gke_share.yaml').read_text()),
  ):
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, version, strict=True)


def test_gke_restarts_the_whole_slice():
  jobs, job = _job()
  policy = jobs['spec']['failurePolicy']
  # One pod alone cannot join the others again.
  assert job['backoffLimit'] == 0
  assert job['template']['spec']['restartPolicy'] == 'Never'
  assert policy['maxRestarts'] > 0
  (rule,) = policy['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  assert re.fullmatch(r'[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?', rule['name'])
  on_pod, on_code = job['podFailurePolicy']['rules']
  assert on_code == {
    'action': 'FailJob',
    'onExitCodes': {'operator': 'In', 'values': [preemption.EXIT_CODE]},
  }
  assert on_pod == {
    'action': 'FailJob',
    # JobSet, unlike Kubernetes, wants the status said, as a text.
    'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}],
  }


def test_gke_keeps_what_is_written_on_a_shared_volume():
  _, job = _job()
  storage, claim, door = _manifest(
    'gke_share.yaml',
    ('storage.k8s.io/v1', 'StorageClass'),
    ('v1', 'PersistentVolumeClaim'),
    ('v1', 'Pod'),
  )
  assert claim['spec']['storageClassName'] == storage['metadata']['name']
  assert claim['spec']['accessModes'] == ['ReadWriteMany']
  assert storage['reclaimPolicy'] == 'Retain'
  for pod in (door['spec'], job['template']['spec']):
    (volume,) = pod['volumes']
    (container,) = pod['containers']
    (mount,) = container['volumeMounts']
    assert mount['name'] == volume['name']
    used = volume['persistentVolumeClaim']['claimName']
    assert used == claim['metadata']['name']
  places = ('workdir', 'data_root', 'cache_dir', 'config.model.path')
  args = container['args']
  for place in places:
    (given,) = [arg for arg in args if arg.startswith(f'--{place}=')]
    assert f'={mount["mountPath"]}/' in given
