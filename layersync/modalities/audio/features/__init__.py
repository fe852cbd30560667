"""What audio scores are taken on: published networks behind the preprocessing that they were published with."""
