"""The service that takes orders. It tells billing, and hears back when the invoice exists."""

from testproject.settings.base import *  # noqa: F403
from testproject.settings.base import INSTALLED_APPS, JETBRIDGE_BASE, database

INSTALLED_APPS = [*INSTALLED_APPS, "testproject.orders"]
DATABASES = {"default": database("orders")}
JETBRIDGE = {**JETBRIDGE_BASE, "APP_NAME": "orders", "DESTINATIONS": ["billing"], "SOURCES": ["billing"]}
