#!/usr/bin/env bash
# Runs the programs of this clone on a TPU pod of Google Cloud.
#
#   launch/tpu_pod.sh create --name=POD --zone=ZONE --accelerator=v5litepod-16 \
#     [--spot] [-- FLAGS_OF_GCLOUD]
#   launch/tpu_pod.sh install --name=POD --zone=ZONE [--share=HOST:/PATH]
#   launch/tpu_pod.sh run --name=POD --zone=ZONE -- launch.run --config=...
#   launch/tpu_pod.sh collect --name=POD --zone=ZONE --from=/PATH --to=DIRECTORY
#   launch/tpu_pod.sh delete --name=POD --zone=ZONE
#
# create   asks for a pod and waits for it; one that was taken away is asked for
#          again, one that is there is left alone.
# install  brings the last commit to every worker, with its dependencies, and
#          mounts the NFS share at /mnt/share. What lies in runs/ stays.
# run      runs a program, --distributed over all workers, and prints what they
#          print. It ends with the connection. The same command again goes on.
# collect  copies a directory from worker 0 into a local one.
# delete   gives the pod back. What is on the share stays.
#
# Everywhere: --project=PROJECT, else gcloud's own; --dry_run prints the
# commands for gcloud and runs none. Exit codes: 2 for wrong arguments, 75 if
# the pod was taken away during `run` (create, install, run again), else that
# of the command that failed.
set -euo pipefail

readonly poll_seconds=30
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # CODE MESSAGE
  echo "Error: $2" >&2
  exit "$1"
}

usage() { # MESSAGE
  fail 2 "$1 See ${0##*/} --help."
}

quoted() { # ARGUMENT, as a shell wants it
  local quote=\'\\\'\'
  case $1 in
    '' | *[!-A-Za-z0-9_./:=,@%+]*) printf %s "'${1//\'/$quote}'" ;;
    *) printf %s "$1" ;;
  esac
}

call() { # ARGUMENTS of gcloud
  local argument line=gcloud
  if [[ ! $dry_run ]]; then
    gcloud "$@" </dev/null
    return
  fi
  for argument in "$@"; do
    line+=" $(quoted "$argument")"
  done
  echo "$line" >&3
}

tpus() { # GROUP VERB ARGUMENTS
  call compute tpus "$@" "${common[@]}"
}

on_all() { # COMMAND ARGUMENTS of gcloud
  tpus tpu-vm ssh "$name" --worker=all --command="$1" "${@:2}"
}

# Lists: an answer to `describe` that fails does not say whether the thing is
# not there or the question did not arrive.
field() { # GROUP COLLECTION FIELD: of what bears the pod's name, else nothing
  tpus "$1" list --filter="name~/$2/$name\$" --format="value($3)"
}

state() { # absent, waiting, ready, lost or failed
  local request node
  request=$(field queued-resources queuedResources state.state) || return
  node=$(field tpu-vm nodes state) || return
  if [[ $dry_run ]]; then
    echo "$assumed"
    return
  fi
  case $request/$node in
    /*) echo absent ;;
    ACTIVE/READY) echo ready ;;
    ACTIVE/ | ACTIVE/PREEMPTED | ACTIVE/TERMINATED | SUSPENDED/*) echo lost ;;
    FAILED/*) echo failed ;;
    *) echo waiting ;;
  esac
}

runtime_version() {
  case $accelerator in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) usage "--accelerator=$accelerator: expected v4-N, v5litepod-N, v5p-N or\
 v6e-N. Later TPUs are had through Kubernetes, launch/gke.yaml." ;;
  esac
}

create() { # FLAGS_OF_GCLOUD
  local request now before=''
  request=(queued-resources create "$name" --node-id="$name"
    --accelerator-type="$accelerator" --runtime-version="$(runtime_version)")
  if [[ $spot ]]; then
    request+=(--spot)
  fi
  while now=$(state); do
    if [[ $now != "$before" && ! $dry_run ]]; then
      echo "$name: $now" >&2
    fi
    before=$now
    case $now in
      absent)
        tpus "${request[@]}" "$@"
        assumed=ready
        ;;
      waiting) sleep "$poll_seconds" ;;
      ready) return ;;
      lost) delete ;;
      failed) fail 1 "The request for $name failed, for want of quota or of\
 machines; gcloud compute tpus queued-resources describe $name says why. Delete\
 it, then create again." ;;
    esac
  done
  fail 1 'gcloud does not say how the pod is.'
}

install() {
  packed=$(mktemp -d)
  trap 'rm -rf "$packed"' EXIT
  if [[ ! $dry_run ]]; then
    pack "$packed/me_jax.tar.gz"
  fi
  cd "$packed"
  tpus tpu-vm scp me_jax.tar.gz "$name:" --worker=all
  on_all "$(setup)"
  if [[ $share ]]; then
    on_all "$(mounting)"
  fi
}

pack() { # FILE
  local changed
  changed=$(git -C "$root" status --porcelain)
  if [[ $changed ]]; then
    fail 1 "What is installed is the last commit, and these are not in it:
$changed
Commit them, or put them away."
  fi
  git -C "$root" archive --format=tar.gz --output="$1" HEAD
}

# The machines have an older Python than this project wants; uv brings another.
setup() {
  cat <<'END'
set -e
mkdir -p me_jax
find me_jax -mindepth 1 -maxdepth 1 ! -name runs -exec rm -rf {} +
tar -xzf me_jax.tar.gz -C me_jax
cd me_jax
python3 -m pip install -q --user uv
~/.local/bin/uv venv -q --python=3.11
~/.local/bin/uv pip install -q -c constraints.txt -e '.[tpu]'
END
}

# Without cached attributes a worker sees at once what another has written.
mounting() {
  cat <<END
set -e
command -v mount.nfs >/dev/null || sudo apt-get -qq update
command -v mount.nfs >/dev/null || sudo apt-get -qq -y install nfs-common
sudo mkdir -p /mnt/share
mountpoint -q /mnt/share ||
  sudo mount -t nfs -o hard,actimeo=0 $(quoted "$share") /mnt/share
test -w /mnt/share || sudo chmod 1777 /mnt/share
END
}

run() { # MODULE FLAGS
  local line='cd me_jax && exec .venv/bin/python -m' argument code=0 now
  for argument in "$1" --distributed "${@:2}"; do
    line+=" $(quoted "$argument")"
  done
  # On terminals of their own the programs end when the connection does, on all
  # workers, and none is left that holds its chips.
  on_all "$line" --ssh-flag=-tt || code=$?
  if ((code)); then
    now=$(state) || exit "$code"
    if [[ $now != ready ]]; then
      fail 75 'The pod was taken away. The same create, install and run go on.'
    fi
  fi
  return "$code"
}

collect() {
  if [[ ! $dry_run ]]; then
    mkdir -p "$to"
  fi
  tpus tpu-vm scp --recurse "$name:$from" "$to" --worker=0
}

delete() {
  tpus queued-resources delete "$name" --force
  assumed=absent
}

need() { # FLAGS that must have been given
  local flag
  for flag in "$@"; do
    [[ ${!flag} ]] || usage "$command wants --$flag=..."
  done
}

exec 3>&1 # Where a dry run prints, also out of $(...).
command=${1:-}
case $command in
  create) known='accelerator spot' ;;
  install) known=share ;;
  run | delete) known='' ;;
  collect) known='from to' ;;
  -h | --help)
    sed -n '2,/^set /s/^#$//p; 2,/^set /s/^# //p' "${BASH_SOURCE[0]}"
    exit
    ;;
  *) usage "Expected create, install, run, collect or delete, not '${1:-}'." ;;
esac
shift

name='' zone='' project='' dry_run=''
accelerator='' spot='' share='' from='' to=''
while (($#)) && [[ $1 != -- ]]; do
  flag=${1#--}
  flag=${flag%%=*}
  [[ " name zone project dry_run $known " == *" $flag "* ]] ||
    usage "$command knows no '$1'."
  case $1 in
    --dry_run | --spot) printf -v "$flag" yes ;;
    --dry_run=* | --spot=*) usage "--$flag takes no value." ;;
    --*=?*) printf -v "$flag" %s "${1#*=}" ;;
    *) usage "Expected --$flag=..., not '$1'." ;;
  esac
  shift
done
if (($#)); then
  shift
fi

need name zone
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  usage "--name=$name: expected small letters, digits and hyphens."
case $command in
  create)
    need accelerator
    runtime_version >/dev/null
    ;;
  run)
    [[ ${1:-} =~ ^launch\.(run|evaluate|second_moment|train_mend)$ ]] ||
      usage "Expected -- and launch.run, launch.evaluate,\
 launch.second_moment or launch.train_mend with its flags, not '${1:-}'."
    ;;
  collect)
    need from to
    [[ $from == /* ]] || usage "--from=$from: expected a path from the root."
    ;;
esac
if [[ $command != create && $command != run ]] && (($#)); then
  usage "$command takes nothing behind --, not '$1'."
fi

common=(--zone="$zone" --quiet)
if [[ $project ]]; then
  common+=(--project="$project")
fi
assumed=absent # What a dry run takes the pod for.
"$command" "$@"
