"""Features that motion scores are taken on: plain functions of joint positions, without weights."""
