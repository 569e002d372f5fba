#!/bin/bash
# Slurm's accounting on the controller: slurmdbd over a MariaDB of its own. The database's password
# is made here, is in slurmdbd.conf alone, and is printed nowhere.
set -Eeuo pipefail
ROOT="${ISOMORPH_ROOT:-}"
ETC="$ROOT/opt/slurm/etc"

fail() {
  echo "isomorph: $1" >&2
  exit "${2:-1}"
}

for program in mysql openssl; do
  command -v "$program" >/dev/null || fail "accounting needs $program, which this image lacks" 3
done
systemctl enable --now mariadb || fail "systemctl cannot start mariadb"

if [ ! -f "$ETC/slurmdbd.conf" ]; then
  password="$(openssl rand -hex 24)"
  # Over the socket, as root: no password crosses a command line.
  mysql --user=root <<SQL || fail "MariaDB refuses to make the accounting's database"
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS 'slurm'@'localhost' IDENTIFIED BY '$password';
ALTER USER 'slurm'@'localhost' IDENTIFIED BY '$password';
GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';
SQL
  (
    umask 077
    cat >"$ETC/slurmdbd.conf.new" <<CONF
AuthType=auth/munge
DbdHost=$(hostname)
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct_db
LogFile=/var/log/slurm/slurmdbd.log
CONF
  )
  chown slurm:slurm "$ETC/slurmdbd.conf.new"
  mv "$ETC/slurmdbd.conf.new" "$ETC/slurmdbd.conf"
fi
systemctl enable --now slurmdbd || fail "systemctl cannot start slurmdbd"

for line in AccountingStorageType=accounting_storage/slurmdbd "AccountingStorageHost=$(hostname)" \
  JobAcctGatherType=jobacct_gather/linux; do
  grep -qxF "$line" "$ETC/accounting.conf" 2>/dev/null || echo "$line" >>"$ETC/accounting.conf"
done
include="Include $ETC/accounting.conf"
grep -qxiF -e "$include" -e "include accounting.conf" "$ETC/slurm.conf" || echo "$include" >>"$ETC/slurm.conf"
