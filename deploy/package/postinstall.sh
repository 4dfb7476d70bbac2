#!/bin/sh
# Does not start the server after the first installation: it would create a private
# PostgreSQL where a database elsewhere may be intended.
set -e
# The unit uses this user instead of a dynamic one, so that PostgreSQL finds its name.
getent passwd queued >/dev/null ||
    useradd --system --user-group --home-dir /var/lib/queued --no-create-home --shell /usr/sbin/nologin queued

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# An upgrade: "configure OLD" in Debian, 2 in RPM.
if [ "$1" = configure ] && [ -n "$2" ] || [ "$1" = 2 ]; then
    systemctl try-restart queued.service
else
    echo "Set QUEUED_DATABASE_URL in /etc/queued/queued.env, or install PostgreSQL for a private one in /var/lib/queued. Then: systemctl enable --now queued"
fi
