"""The coupon service: decisions over HTTP under a budget that a database keeps.

From the bottom: :mod:`tables` and :mod:`database` (storage), :mod:`idempotency` and :mod:`ledger` (money),
:mod:`desk` (what the service does, without HTTP), :mod:`app` (HTTP), :mod:`server` (processes). Decisions
come back out through :mod:`decision_log`, into files that :mod:`decision_file` reads. All but reading them
needs the extra ``serve``; nothing here imports torch.
"""
