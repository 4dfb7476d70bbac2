#!/bin/sh
set -e
# Not for an upgrade: "upgrade" in Debian, 1 in RPM.
case "$1" in remove | 0) ;; *) exit 0 ;; esac
[ -d /run/systemd/system ] || exit 0
systemctl disable --now queued.service
