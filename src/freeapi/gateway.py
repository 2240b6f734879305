"""The gateway: every object built by hand, and told of a new configuration.

This is the one place that knows how the parts are put together. What this is not: the process
around it, with its signals and its order of starting and stopping, is ``serve``'s.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from pathlib import Path

from freeapi.config import Config
from freeapi.dispatch import Dispatcher
from freeapi.embedded import Model, Models
from freeapi.gate import Gate, new_secret
from freeapi.http.deadlines import Deadlines
from freeapi.http.server import Server
from freeapi.journal import Journal
from freeapi.measures import Families
from freeapi.pages.admin import AdminPages, is_loopback
from freeapi.pages.gauges import watch_keys, watch_load, watch_money
from freeapi.pages.instruments import Instruments
from freeapi.pages.site import Site
from freeapi.pages.site_facts import SiteFacts
from freeapi.pages.status import Left, StatusPage
from freeapi.policy.budget import Caps, Status
from freeapi.policy.callers import TokenTable, parse_tokens
from freeapi.policy.keys import KeyPool
from freeapi.policy.models import PATHS, ModelTable
from freeapi.policy.payload import Rules
from freeapi.ports import listen, listen_for_operator, server_limits
from freeapi.proxy import Proxy
from freeapi.reload import unchangeable
from freeapi.routes import COMMON_HEADERS, Routes
from freeapi.scheduler import Scheduler
from freeapi.shared import Shared, SharedScheduler
from freeapi.state.ledger import Ledger, Purse
from freeapi.state.valkey_purse import SharedPurse
from freeapi.upstreams import STAND_IN_FOR, Upstreams, build, caps, routed
from freeapi.workers.link import Report

#: No secret: what keeps tokens out of the shared store is the day's, with which they are tagged.
_SHARED_TOKEN_SECRET = b"access tokens of gateways that share"


class Gateway:
    """The parts of one process and how they are joined.

    What counts or remembers (callers, limits, keys, money, those that wait) lives as long as the
    process and is told of new values; what doesn't is made anew by each configuration.
    """

    def __init__(
        self,
        config: Config,
        journal: Journal,
        embedded: Models,
        local: Model | None,
        shared: Shared | None = None,
    ) -> None:
        """``local``: what ``embedded`` has for this configuration.

        ``shared``: what it does together with others; None: it is alone.
        """
        self.config = config
        self._shared = shared
        self._local = local
        self._journal = journal
        self._embedded = embedded
        self._loop = asyncio.get_running_loop()
        self._created_s = int(time.time())
        #: So that a token is the same caller after a reload, and at all who share.
        self._token_secret = secrets.token_bytes(32) if shared is None else _SHARED_TOKEN_SECRET
        self._deadlines = Deadlines(self._loop, _shortest_s(config))
        self._upstreams = build(config, _socket(local), self._deadlines)
        self._instruments = Instruments(self._loop)
        self._metrics = self._instruments.metrics
        self._purse = self._new_purse(config, self._ledger(config))
        self._keys = KeyPool(self._upstreams.keys, random.SystemRandom().random)
        self._gate = self._new_gate(config)
        self._scheduler = self._new_scheduler(config)
        self._dispatcher = self._new_dispatcher(config)
        self._proxy = self._new_proxy(config)
        self._status = self._status_page(config)
        self._site = Site(SiteFacts.of(config))
        self._routes = self._new_routes(config)
        limits = server_limits(config)
        self._public = Server(
            self._routes,
            limits,
            self._deadlines,
            headers=COMMON_HEADERS,
            is_upload=self._routes.is_upload,
            refused=lambda error: self._metrics.answered("other", error.status, error.label),
        )
        self._watch()
        self._admin = Server(self._admin_pages(config), limits, self._deadlines)

    async def reload(self, config: Config) -> None:
        """Go on by another configuration: no request is dropped, and no counter begins anew.

        Raises LocalModelError or LedgerError; then all is as before. Not for two at a time.
        """
        config, fixed = unchangeable(self.config, config)
        # First what may fail or take its time; what follows the last await is one step.
        local = await self._embedded.wanted(config)
        try:
            upstreams = build(config, _socket(local), self._deadlines, self._upstreams)
            tokens = self._tokens(config)
            if self._purse is None:
                ledger = await asyncio.to_thread(self._ledger, config)
                self._purse = self._new_purse(config, ledger)
        except BaseException:
            if not self.config.wants_local:
                self._embedded.dismiss(0.0)
            raise
        for name in fixed:
            self._journal.event("restart_needed", setting=name)
        self._replace(config, local, upstreams, tokens)

    def count_reload(self, is_ok: bool) -> None:
        """For the metrics: one was taken over, or refused."""
        self._metrics.reloaded(is_ok=is_ok)

    def _replace(
        self,
        config: Config,
        local: Model | None,
        upstreams: Upstreams,
        tokens: TokenTable | None,
    ) -> None:
        """Tell every part. No await: a request sees all of it or nothing."""
        if local is None:
            self._embedded.dismiss(
                self.config.timeouts.total_s
            )  # by then none of its requests is left
        self.config, self._local = config, local
        limits = caps(config)
        if self._purse is not None:
            self._purse.reconfigure(limits or Caps())
        self._upstreams.retire(upstreams)
        self._upstreams = upstreams
        self._keys.reconfigure(upstreams.keys)
        self._gate.reconfigure(
            limits=config.caller_limits,
            tokens=tokens,
            proxy_hops=config.proxy_hops,
            models=config.models,
        )
        self._dispatcher.reconfigure(
            upstreams,
            None if limits is None else self._purse,
            has_stand_in=config.policy.when_exhausted == "local",
        )
        models = self._models(config)
        self._proxy.reconfigure(
            models=models,
            rules=_rules(config),
            total_s=config.timeouts.total_s,
            request_log=config.request_log,
        )
        self._routes.reconfigure(models)
        self._status = self._status_page(config)
        self._site.replace(SiteFacts.of(config))
        self._allow_labels()
        self._admin.app = self._admin_pages(config)
        self._public.limits = self._admin.limits = server_limits(config)
        self._deadlines.heed(_shortest_s(config))
        self._journal.set_level(config.log)
        if isinstance(self._scheduler, SharedScheduler):
            self._reconfigure_shared(self._scheduler, config)
        else:
            self._scheduler.reconfigure(config.queue_s)

    # --- What a configuration makes ---

    def _models(self, config: Config) -> ModelTable:
        return ModelTable(routed(config), created=self._created_s)

    def _tokens(self, config: Config) -> TokenTable | None:
        if config.access_tokens is None:
            return None
        text = config.access_tokens.reveal()
        return parse_tokens(text, config.caller_limits, self._token_secret)

    def _new_gate(self, config: Config) -> Gate:
        shared = self._shared
        return Gate(
            limits=config.caller_limits,
            tokens=self._tokens(config),
            proxy_hops=config.proxy_hops,
            models=config.models,
            now=self._loop.time,
            journal=self._journal,
            shared=None if shared is None else shared.limits,
            secret=new_secret if shared is None else shared.secret,
        )

    def _new_dispatcher(self, config: Config) -> Dispatcher:
        return Dispatcher(
            self._keys,
            self._upstreams,
            self._purse,
            has_stand_in=config.policy.when_exhausted == "local",
            now=self._loop.time,
            journal=self._journal,
            metrics=self._metrics,
        )

    def _new_proxy(self, config: Config) -> Proxy:
        return Proxy(
            gate=self._gate,
            scheduler=self._scheduler,
            models=self._models(config),
            rules=_rules(config),
            dispatcher=self._dispatcher,
            total_s=config.timeouts.total_s,
            journal=self._journal,
            metrics=self._metrics,
            request_log=config.request_log,
        )

    def _new_routes(self, config: Config) -> Routes:
        return Routes(
            {endpoint: self._proxy.answer(endpoint) for endpoint in PATHS},
            self._models(config),
            self._is_ready,
            lambda: self._status.body(),
            dict.fromkeys(Site.PATHS, self._site.answer),
            self._gate.headers_for,
            self._metrics,
            self._journal,
        )

    def _new_scheduler(self, config: Config) -> Scheduler | SharedScheduler:
        alone = Scheduler(self._gate, self._keys, config.queue_s)
        if self._shared is None:
            return alone
        self._shared.join(self._keys)
        scheduler = SharedScheduler(self._gate, self._keys, self._shared, alone)
        self._reconfigure_shared(scheduler, config)
        return scheduler

    def _reconfigure_shared(self, scheduler: SharedScheduler, config: Config) -> None:
        scheduler.reconfigure(
            config.queue_s,
            self._upstreams.free,
            config.caller_daily_nanousd,
            stand_in_for=STAND_IN_FOR if config.policy.when_exhausted == "local" else (),
        )

    def _ledger(self, config: Config) -> Ledger | None:
        """Where money is written down here, if any is spent within caps. Raises LedgerError."""
        if caps(config) is None or self._shared is not None:
            return None
        assert config.data_dir is not None, "the edge resolves it"
        return Ledger(Path(config.data_dir))

    def _new_purse(self, config: Config, ledger: Ledger | None) -> Purse | SharedPurse | None:
        limits = caps(config)
        if limits is None:
            return None
        if self._shared is not None:
            return SharedPurse(limits, self._shared.leases, time.time, self._ledger_reported)
        return None if ledger is None else Purse(limits, ledger, time.time, self._ledger_reported)

    def _ledger_reported(self, label: str) -> None:
        self._journal.event("ledger", label=label)
        self._metrics.ledger_reported(label)

    def _is_ready(self) -> bool:
        return self._local is None or not self.config.local or self._local.is_ready

    def _status_page(self, config: Config) -> StatusPage:
        money = self._purse.status if self._purse is not None and caps(config) else None
        return StatusPage(
            self._is_ready,
            lambda: self._scheduler.waiting,
            money,
            wait_s=lambda: self._scheduler.wait_s,
            upstream=lambda: self._keys.availability(self._loop.time()),
            capacity=lambda: [Left(name, *left) for name, left in self._gate.capacity().items()],
        )

    def _admin_pages(self, config: Config) -> AdminPages:
        return AdminPages(
            self._keys,
            self._upstream_models(),
            self._loop.time,
            local_only=config.admin is not None and is_loopback(config.admin.host),
            operator=self._instruments.operator,
        )

    # --- What is counted ---

    def _watch(self) -> None:
        """Have the metrics look at what is no count of requests."""
        metrics = self._metrics
        self._allow_labels()
        watch_load(metrics, lambda: self._scheduler.waiting, self._connections)
        watch_keys(metrics, self._keys, self._upstream_models, self._loop.time)
        watch_money(metrics, self._money, lambda: caps(self.config))

    def _allow_labels(self) -> None:
        self._metrics.allow([one.name for one in self.config.models], list(self._upstreams.pools))

    def _connections(self) -> tuple[int, int]:
        return self._public.connections, sum(
            pool.connections for pool in self._upstreams.pools.values()
        )

    def _money(self) -> Status | None:
        has_caps = self._purse is not None and caps(self.config) is not None
        return self._purse.status() if self._purse is not None and has_caps else None

    def _upstream_models(self) -> set[str]:
        return {model.upstream_model for model in self.config.models}

    # --- Its life ---

    async def listen(self, *, is_shared: bool = False) -> tuple[str, int]:
        """Accept callers; returns the public address. Raises CannotListen.

        ``is_shared``: other workers listen there, too.
        """
        config = self.config
        await listen_for_operator(self._admin, config, self._journal)
        return await listen(self._public, config, is_shared=is_shared)

    def counted(self) -> Families:
        """All metrics, as of now."""
        return self._metrics.collect()

    def report(self) -> Report:
        """For a supervisor: what was counted, and the keys' states."""
        keys = self._keys.describe(self._loop.time(), self._upstream_models())
        return Report(self._metrics.snapshot(), keys)

    async def drain(self) -> None:
        """No new callers; open answers finish within the limit; then all connections close."""
        await self._public.drain(self.config.drain_s)
        await self._admin.drain(0)
        self._instruments.close()
        self._upstreams.close()
        self._deadlines.close()
        if self._purse is not None:
            await self._purse.close()


def _rules(config: Config) -> Rules:
    return Rules(n_max=config.policy.n_max, unknown_fields=config.policy.unknown_fields)


def _socket(local: Model | None) -> str | None:
    return None if local is None else local.socket_path


def _shortest_s(config: Config) -> float:
    timeouts = config.timeouts
    return min(timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s)
