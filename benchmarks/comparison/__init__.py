"""What `nvme.py` compares, and how: cases, systems in processes of their own, a drive at rest, figures."""
