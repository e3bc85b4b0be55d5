#!/bin/sh
# The seed's gevent server, echoing: makes a virtual environment where there is none yet, and listens on 127.0.0.1:PORT.
#   run.sh --build        makes the virtual environment only
#   run.sh PORT
set -eu
cd "$(dirname "$0")"
if ! [ -e venv/ready ]; then
    python3 -m venv venv
    venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
    touch venv/ready
fi
[ "$1" = --build ] || exec venv/bin/python3 tcpserver.py "$1" --echo
