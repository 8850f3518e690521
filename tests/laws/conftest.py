"""What is run in a process of its own, by `test_second_device`, and not imported by others."""

collect_ignore = ["second_device.py", "on_a_card.py"]
