"""The service that writes invoices for orders."""

from testproject.settings.base import *  # noqa: F403
from testproject.settings.base import INSTALLED_APPS, JETBRIDGE_BASE, database

INSTALLED_APPS = [*INSTALLED_APPS, "testproject.billing"]
DATABASES = {"default": database("billing")}
JETBRIDGE = {**JETBRIDGE_BASE, "APP_NAME": "billing", "DESTINATIONS": ["orders"], "SOURCES": ["orders"]}
