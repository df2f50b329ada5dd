"""Tests of dashboards, rules and alerts."""
