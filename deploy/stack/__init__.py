"""The gateway, Prometheus and Alertmanager together on one machine, without containers."""
