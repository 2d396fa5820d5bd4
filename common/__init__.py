"""Pure and shared: config, messages, data, models, privacy, metrics, report; knows nobody."""

import os

# fedward never talks to anyone but its own server: Flower's telemetry, update check and run-time
# installs are off before any part of Flower can be imported, since every package imports this one.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}.items():
    os.environ[_name] = _value
