"""Attention as an argument: the contract (`Site`, `Attend`, `MapFn`), and stores, heat maps and masks built on it."""

from minip2p.attention.contract import Attend, MapFn, Site, SiteFilter, chain, explicit, fused
from minip2p.attention.store import AttentionStore

__all__ = ["Site", "SiteFilter", "Attend", "MapFn", "fused", "explicit", "chain", "AttentionStore"]
