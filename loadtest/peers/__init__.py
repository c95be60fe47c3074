"""What Lorry is compared with and that others do not ship as a server: merged models, and PEFT."""
