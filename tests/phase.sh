#!/usr/bin/env bash
# Run a command as one phase of the tests and keep its seconds: phase.sh FILE NAME COMMAND...
# phase.sh FILE prints what was kept.
file=$1
name=${2:-}
if [ -z "$name" ]; then
  cat "$file"
  exit
fi
shift 2
began=$SECONDS
"$@"
code=$?
touch "$file"
sed -i "/^$name /d" "$file"
printf '%-8s %5d s%s\n' "$name" $((SECONDS - began)) "$([ $code = 0 ] || echo ", failed")" >>"$file"
exit $code
