from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("number", models.CharField(max_length=64)),
                ("total", models.DecimalField(decimal_places=2, max_digits=12)),
                ("email", models.EmailField(blank=True, max_length=254)),
                (
                    "fails",
                    models.BooleanField(
                        default=False, help_text="Billing can never write an invoice for this one."
                    ),
                ),
                ("invoiced", models.BooleanField(default=False)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={
                "db_table": "orders_order",
            },
        ),
    ]
