"""What is known of a configuration before JAX is imported: its folders, its rules, the words of its errors, `--help`."""
