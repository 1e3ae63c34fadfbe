"""What one would write with torch instead: pursuits as loops of torch calls, for bench_cuda.py.

Plain functions on tensors of any device; K is (n, n), c is G t, groups are codes 0 .. P - 1 and budgets one for each
code. They return row numbers in pick order, and weights. tests/test_cuda_peers.py holds them against pysubmod on CPU
tensors, so the loops are known to do the same work; each is written to wait for the device as rarely as it can.

Unlike pysubmod they take the plain argmax (no ties up to rounding), take no ``initial``, look for no faults in their
input, and do not let dependent rows trade places.
"""

from __future__ import annotations

import importlib.util
import math

import torch

TOL, RANK_TOL = 1e-12, 1e-10
MINUS_INFINITY = -math.inf


# ---- free weights ----------------------------------------------------------------------------------------------------


def free_pursuit(K, c, groups, budgets, *, k=None, ridge=0.0):
    """Orthogonal matching pursuit on K, free weights, without a wait for the device.

    So it makes as many picks as there is budget, and does not look whether a row depends on the others: both would
    need the host at every pick. With k, and budgets on the device, a CUDA graph can hold all of it.
    """
    k = int(sum(budgets)) if k is None else k
    left = budgets.clone() if isinstance(budgets, torch.Tensor) else torch.tensor(budgets, device=K.device)
    picks = torch.empty(k, dtype=torch.int64, device=K.device)
    open_ = torch.ones(len(c), dtype=torch.bool, device=K.device)
    rows, inverse, forward = K.new_zeros(k, len(c)), K.new_zeros(k, k), K.new_zeros(k)
    used, g, weights = -torch.ones(1, dtype=left.dtype, device=K.device), c, None
    for j in range(k):
        may = open_ & (left[groups] > 0)
        i = torch.where(may, g.abs(), MINUS_INFINITY).argmax().view(1)
        picks[j : j + 1] = i
        open_.index_fill_(0, i, False)
        left.index_add_(0, groups[i], used)
        torch.index_select(K, 0, i, out=rows[j : j + 1])
        column = rows[: j + 1].index_select(1, i)[:, 0]
        _append(inverse, forward, column[:j], column[j] + ridge, c[i][0], j)
        weights = forward[: j + 1] @ inverse[: j + 1, : j + 1]
        g = c - weights @ rows[: j + 1]
    return picks, weights


def _append(inverse, forward, column, c_ii, c_i, j):
    """Row j of M = L^-1, where C_PP = L L' has grown by `column` and c_ii; forward = L^-1 c. Returns c_ii given P."""
    known = inverse[:j, :j]
    lower = known @ column
    schur = c_ii - lower @ lower
    rho = schur.clamp_min(torch.finfo(schur.dtype).tiny).sqrt()
    inverse[j, :j] = -(lower @ known) / rho
    inverse[j, j] = 1 / rho
    forward[j] = (c_i - lower @ forward[:j]) / rho
    return schur


# ---- weights >= 0 ----------------------------------------------------------------------------------------------------


class ActiveSet:
    """Exact weights >= 0 of a growing support: Lawson and Hanson's active set on an inverse Cholesky factor.

    One wait for the device a member, unless a weight becomes zero; then the factor is made afresh, with a wait a step.
    """

    def __init__(self, k, like):
        self.C, self.c, self.w = like.new_zeros(k, k), like.new_zeros(k), like.new_zeros(k)
        self.inverse, self.forward = like.new_zeros(k, k), like.new_zeros(k)
        self.size, self.active = 0, []  # members; those in the factor, in its order

    def try_add(self, column, c_ii, c_i, *asked):
        """Take one member more if it is independent and improves: whether it was taken, and the numbers asked for.

        `asked` are numbers on the device that come to the host in the same wait; the first two are the correlation and
        the least that counts.
        """
        j = self.size
        self.C[j, :j], self.C[:j, j], self.C[j, j], self.c[j] = column, column, c_ii, c_i
        schur, target = self._enter(j)
        share, own, least, *numbers = torch.stack([schur / c_ii, target[-1], target.min(), *asked]).tolist()
        if not (numbers[0] > numbers[1] and share > RANK_TOL and own > 0):
            return False, numbers
        before = self.w.clone(), list(self.active)
        self.size += 1
        self.active.append(j)
        self._climb(target, least > 0)
        if len(self.active) < self.size and not self._settle():
            self.size, (self.w, self.active) = j, before
            self._factorise()
            return False, numbers
        return True, numbers

    def _at(self):
        """The active members as an index: a slice where that is all."""
        p = len(self.active)
        return slice(0, p) if self.active == list(range(p)) else torch.tensor(self.active, device=self.c.device)

    def _enter(self, m):
        """Member m as the last row of the factor: its Schur complement, and the optimum over all that are in it."""
        p, at = len(self.active), self._at()
        schur = _append(self.inverse, self.forward, self.C[m][at], self.C[m, m], self.c[m], p)
        return schur, self._optimum(p + 1)

    def _optimum(self, p):
        return self.forward[:p] @ self.inverse[:p, :p]

    def _factorise(self):
        p, at = len(self.active), self._at()
        factor = torch.linalg.cholesky(self.C[at][:, at])
        self.inverse[:p, :p] = torch.linalg.solve_triangular(factor, torch.eye(p).to(factor), upper=False)
        self.forward[:p] = self.inverse[:p, :p] @ self.c[at]

    def _climb(self, target, is_positive):
        """To the optimum over the active members, dropping on the way whoever reaches zero first."""
        while not is_positive:
            at = self._at()
            w = self.w[at]
            share = _share(w, target, target <= 0)
            nearest = share.min()
            stays = share > nearest
            self.w[at] = torch.where(stays, w + nearest * (target - w), 0.0)
            self.active = [m for m, stay in zip(self.active, stays.tolist(), strict=True) if stay]
            self._factorise()
            target = self._optimum(len(self.active))
            is_positive = bool((target > 0).all())
        self.w[self._at()] = target

    def _settle(self):
        """Members without weight whose multiplier is positive enter again, the steepest first. False: no end to it."""
        n, skipped = self.size, []
        root = self.C.diagonal()[:n].sqrt()
        unit = TOL * (self.w[:n] @ root + (self.c[:n].abs() / root).max())
        for _ in range(100 + 10 * n):
            slope = (self.c[:n] - self.C[:n, :n] @ self.w[:n]) / root
            slope[self._at()] = 0.0
            slope[skipped] = 0.0
            steepest, m, least = torch.stack([slope.max(), slope.argmax().to(slope), unit]).tolist()
            if steepest <= least:
                return True
            m = int(m)
            schur, target = self._enter(m)
            if float(schur / self.C[m, m]) > RANK_TOL and float(target[-1]) > 0:
                self.active.append(m)
                self._climb(target, bool((target > 0).all()))
            else:
                skipped.append(m)
        return False


def _share(w, target, falls):
    """How far towards `target` each weight may go until it is zero; infinity where it does not fall."""
    return torch.where(falls & (w > 0), w / (w - target), torch.where(falls, 0.0, math.inf))


def nonnegative_pursuit(K, c, groups, budgets, *, ridge=0.0):
    """Orthogonal matching pursuit on K with exact weights >= 0: one wait for the device a pick, where none drops out.

    The host has to know whether a row helps, whether a weight became zero, and which group is full.
    """
    k = int(sum(budgets))
    rows, diagonal = K.new_zeros(k, len(c)), K.diagonal() + ridge

    def member(i, j):
        torch.index_select(K, 0, i, out=rows[j : j + 1])
        return rows[:j].index_select(1, i)[:, 0], diagonal[i][0], c[i][0]

    def correlations(active_set):
        return c - active_set.w[: active_set.size] @ rows[: active_set.size]

    return _nonnegative(k, groups, budgets, c, diagonal.sqrt(), member, correlations)


def stepwise_pursuit(G, target, groups, budgets, *, ridge=0.0, most=None):
    """The same on rows G (n, d), with a product of all rows and the residual for each pick; `most` stops it early.

    The residual is rounded to the type of G for that product, so that rows are read as fast as they can be. In half
    precision these are not the picks of an exact pursuit. All else is float64.
    """
    k, t = min(int(sum(budgets)), most or len(G)), target.double()
    rows = t.new_zeros(k, G.shape[1])
    root = torch.cat([(part.float().square().sum(1).double() + ridge).sqrt() for part in G.split(16384)])

    def product(vector):
        return (G @ vector.to(G.dtype)).double()

    def member(i, j):
        rows[j : j + 1] = G.index_select(0, i)
        return rows[:j] @ rows[j], rows[j] @ rows[j] + ridge, rows[j] @ t

    def correlations(active_set):
        return product(t - active_set.w[: active_set.size] @ rows[: active_set.size])

    return _nonnegative(k, groups, budgets, product(t), root, member, correlations)


def _nonnegative(k, groups, budgets, c, root, member, correlations):
    """The loop: member(i, j) is what row i, as member j, is to the others; correlations() are c - C w."""
    left, codes = list(budgets), groups.tolist()
    may = torch.tensor(budgets, device=c.device)[groups] > 0
    unit = TOL * (c.abs() / root.clamp_min(torch.finfo(c.dtype).tiny)).max()
    active_set, picks, barred, g = ActiveSet(k, root), [], [], c
    while len(picks) < k:
        best, i = torch.where(may, g, MINUS_INFINITY).max(0)
        i = i.view(1)
        taken, (height, least, row) = active_set.try_add(*member(i, len(picks)), best, unit * root[i][0], i[0].to(c))
        if not height > least:
            break
        row = int(row)
        may[row] = False
        if not taken:
            barred.append(row)  # until the next pick
            continue
        picks.append(row)
        left[codes[row]] -= 1
        if barred:
            may[barred] = True
            barred = []
        if left[codes[row]] == 0:
            may &= groups != codes[row]
        g = correlations(active_set)
    return torch.tensor(picks, device=c.device), active_set.w[: len(picks)]


# ---- many problems at once -------------------------------------------------------------------------------------------


def batched_pursuit(K, c, groups, budgets, *, nonneg=True, ridge=0.0):
    """B pursuits in step: K (B, n, n), c and groups (B, n), budgets (B, P) with the same sum each.

    All factors are made afresh for each pick, in one batched call; k is small where this is of use. With weights >= 0
    there is a wait for each step of the active set, one a pick at least.
    """
    n_problems, n = c.shape
    each, k = torch.arange(n_problems, device=K.device), int(budgets[0].sum())
    left, open_ = budgets.clone(), torch.ones_like(c, dtype=torch.bool)
    picks = torch.zeros(n_problems, k, dtype=torch.int64, device=K.device)
    rows, C, members_c = K.new_zeros(n_problems, k, n), K.new_zeros(n_problems, k, k), K.new_zeros(n_problems, k)
    active, w, g = torch.zeros_like(members_c, dtype=torch.bool), torch.zeros_like(members_c), c
    has_idle = False
    for j in range(k):
        may = open_ & (left.gather(1, groups) > 0)
        i = torch.where(may, g if nonneg else g.abs(), MINUS_INFINITY).argmax(1)
        picks[:, j] = i
        open_[each, i] = False
        left[each, groups[each, i]] -= 1
        rows[:, j] = K[each, i]
        column = rows[:, : j + 1].gather(2, i[:, None, None].expand(-1, j + 1, 1))[:, :, 0]
        C[:, j, : j + 1] = column
        C[:, : j + 1, j] = column
        C[:, j, j] += ridge
        members_c[:, j] = c[each, i]
        active[:, j] = True
        part = C[:, : j + 1, : j + 1], members_c[:, : j + 1], active[:, : j + 1], w[:, : j + 1]
        if nonneg:
            has_idle = _refit_all(*part, has_idle)
        else:
            part[3].copy_(_optimum_of(*part[:3]))
        g = c - (part[3][:, None, :] @ rows[:, : j + 1])[:, 0]
    return picks, w


def _optimum_of(C, c, active):
    """C_PP^-1 c_P of each problem, 0 off P."""
    both = active[:, :, None] & active[:, None, :]
    eye = torch.eye(C.shape[1], dtype=C.dtype, device=C.device)
    factor = torch.linalg.cholesky_ex(torch.where(both, C, eye))[0]
    return torch.cholesky_solve(torch.where(active, c, 0.0)[..., None], factor)[..., 0]


def _refit_all(C, c, active, w, has_idle):
    """Moves `w` and `active` to the optimum over the members, in place; whether any member is idle then."""
    root = C.diagonal(dim1=1, dim2=2).sqrt()
    while True:
        target = _optimum_of(C, c, active)
        falls = active & (target <= 0)
        while bool(falls.any()):
            has_idle = True
            share = _share(w, target, falls)
            nearest = share.amin(1, keepdim=True)
            moved = torch.where(nearest < math.inf, w + nearest.clamp_max(1.0) * (target - w), target)
            active &= ~(falls & (share <= nearest))
            w.copy_(torch.where(active, moved, 0.0))
            target = _optimum_of(C, c, active)
            falls = active & (target <= 0)
        w.copy_(target)
        if not has_idle:
            return False
        slope = torch.where(active, 0.0, (c - (C @ w[..., None])[..., 0]) / root)
        steepest, m = slope.max(1)
        enters = steepest > TOL * ((w * root).sum(1) + (c / root).amax(1))
        if not bool(enters.any()):
            return True
        active[torch.arange(len(m), device=m.device), m] |= enters


# ---- refits by accelerated gradients ---------------------------------------------------------------------------------


class ApgdSelection:
    """PartitionSel's way (arXiv 2606.07954; apgd.py has it in NumPy): a pick, then a fixed number of accelerated
    projected gradient steps on the masked vector of all n weights, from a random start.

    Shapes are fixed and nothing waits, so that a CUDA graph can replay `step`: as fast as compiled code gets here.
    """

    def __init__(self, K, c, groups, budgets, *, pick="random", steps=128):
        n = len(c)
        self.K, self.c, self.groups, self.pick = K, c, groups, pick
        self.k = int(sum(budgets))
        self.budgets = torch.tensor(budgets, device=K.device)
        sizes = torch.bincount(groups, minlength=len(budgets))
        self.start = sizes.cumsum(0) - sizes  # where a group begins, rows sorted by group
        self.numbers = torch.arange(n, device=K.device)
        self.pace = 1 / _largest_eigenvalue(K)
        self.momenta, momentum = [], 1.0
        for _ in range(steps):
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            self.momenta.append((momentum - 1) / following)
            momentum = following
        self.picks = torch.zeros(self.k, dtype=torch.int64, device=K.device)
        self.count = torch.zeros(1, dtype=torch.int64, device=K.device)
        self.used = -torch.ones_like(self.count)
        self.chosen = torch.zeros(n, dtype=torch.bool, device=K.device)
        self.left, self.w = self.budgets.clone(), torch.zeros_like(c)

    def reset(self):
        self.picks.zero_()
        self.count.zero_()
        self.chosen.zero_()
        self.left.copy_(self.budgets)
        self.w.zero_()

    def run(self, step=None):
        """All picks, each by `step` (or by what replays it)."""
        self.reset()
        for _ in range(self.k):
            (step or self.step)()
        return self.picks, self.w[self.picks]

    def step(self):
        """One pick and its refit, in place."""
        may = ~self.chosen & (self.left[self.groups] > 0)
        score = torch.where(may, torch.addmv(self.c, self.K, self.w, alpha=-1), MINUS_INFINITY)
        if self.pick == "random":
            drawn = torch.rand(len(score), dtype=score.dtype, device=score.device)
            score = torch.where(self.shortlist(score, may), drawn, MINUS_INFINITY)
        i = score.argmax().view(1)
        self.chosen.index_fill_(0, i, True)
        self.left.index_add_(0, self.groups[i], self.used)
        self.picks.index_copy_(0, self.count, i)
        self.count += 1
        self.refit()

    def shortlist(self, score, may):
        """Of every group the best rows, as many as there is budget left."""
        by_score = score.argsort(descending=True, stable=True)
        order = by_score[self.groups[by_score].argsort(stable=True)]
        group = self.groups[order]
        listed = torch.empty_like(may)
        listed[order] = self.numbers - self.start[group] < self.left[group]
        return listed & may

    def refit(self):
        """max <w, c> - 1/2 w'Kw over w >= 0 on the chosen rows: c = -inf lets the projection keep the others at 0."""
        c = torch.where(self.chosen, self.c, MINUS_INFINITY)
        w = ahead = torch.rand(len(c), dtype=c.dtype, device=c.device) * self.chosen
        for momentum in self.momenta:
            rise = torch.addmv(c, self.K, ahead, alpha=-1)
            after = torch.add(ahead, rise, alpha=self.pace).clamp_min_(0)
            ahead = torch.lerp(w, after, 1 + momentum)  # after + momentum (after - w)
            w = after
        self.w.copy_(w)


def _largest_eigenvalue(K, rounds=30):
    """By power iteration, made 2 % larger: a step length has to be safe."""
    v = torch.ones(len(K), dtype=K.dtype, device=K.device)
    for _ in range(rounds):
        v = K @ v
        v /= v.norm()
    return 1.02 * float(v @ (K @ v))


# ---- orthogonal-matching-pursuit-gpu ---------------------------------------------------------------------------------


def has_omp_gpu():
    return importlib.util.find_spec("orthogonal_matching_pursuit_gpu") is not None


def omp_gpu(K, c, k):
    """The package's "v0" on a K that is at hand, with ones on its diagonal; free weights, no groups.

    `run_omp` would form K once more, so this calls what it calls: with c as a dictionary of one row and a signal of
    length one, the products that it forms first are c.
    """
    from orthogonal_matching_pursuit_gpu.omp import omp_v0

    sets, solutions, _ = omp_v0(c[None], c.new_ones(1, 1), K, n_nonzero_coefs=k, tol=0.0)
    return sets[0], solutions[0].flatten()
