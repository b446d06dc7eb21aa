"""Breaks of the lines in the section Classifiers of docs/semantics.md."""

from __future__ import annotations

from breaks import Break

_SOLVE, _CV = "pyce/sklearn/_solve.py", "pyce/sklearn/_cv.py"
_LBFGS, _NEWTON = "pyce/sklearn/_lbfgs.py", "pyce/sklearn/_newton.py"
_ESTIMATOR, _ADAM = "pyce/sklearn/_estimator.py", "pyce/sklearn/_adam.py"
_DASK = "pyce/dask/_estimator.py"

CLASSIFIERS = (
    Break(
        "`SoftmaxRegression` minimises the objective",
        _SOLVE,
        "    strength = 1.0 / (C * total)\n",
        "    strength = 1.0 / C\n",
        ("test_the_solution_is_that_of_logistic_regression",),
    ),
    Break(
        "`SoftmaxRegression` minimises the objective",
        _LBFGS,
        "MEMORY = 10  # steps",
        "MEMORY = 5  # steps",
        ("test_the_way_to_the_solution_is_the_same", "test_the_steps_are_those_of_scipy"),
    ),
    Break(
        'With `solver="newton-cholesky"`',
        "pyce/sklearn/_objective.py",
        "                matrix[row, range(classes), row, range(classes)] += self.ridge\n",
        "                pass\n",
        ("test_second_derivatives",),
    ),
    Break(
        'With `solver="newton-cholesky"`',
        _NEWTON,
        "    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))\n",
        "    scale = np.ones(len(diagonal))\n",
        ("test_newton_of_features_with_different_scales",),
    ),
    Break(
        "A fit of float32 features continues in float64",
        _SOLVE,
        "    if may_continue() and objective.widen():\n",
        "    if False:\n",
    ),
    Break(
        "With `l1_ratio`, no component",
        "pyce/sklearn/_orthants.py",
        "            new[:penalised][new[:penalised] * signs <= 0] = 0\n",
        "",
        ("test_the_elastic_net_has_its_optimum",),
    ),
    Break(
        "With `l1_ratio`, no component",
        _SOLVE,
        "    objective.ridge = (1 - l1_ratio) * strength\n",
        "    objective.ridge = strength\n",
        ("test_the_elastic_net_is_that_of_saga",),
    ),
    Break(
        "`partial_fit` takes steps of Adam",
        _ADAM,
        "math.sqrt(1 - _BETA2**self.steps) / (1 - _BETA1**self.steps)",
        "1.0",
        ("test_partial_fit_is_adam",),
    ),
    Break(
        "`partial_fit` takes steps of Adam",
        _ESTIMATOR,
        "order = check_random_state(self.random_state).permutation(samples)",
        "order = np.arange(samples)",
        ("test_partial_fit_takes_all_samples_in_random_order",),
    ),
    Break(
        "`partial_fit` takes steps of Adam",
        _ESTIMATOR,
        '            raise ValueError("the first call of partial_fit requires classes")\n',
        "            known = np.unique(y)\n",
        ("test_partial_fit_refuses",),
    ),
    Break(
        "`partial_fit` takes steps of Adam",
        _ESTIMATOR,
        "if known is not None and not np.array_equal(classes, known):",
        "if False:",
        ("test_later_calls_of_partial_fit_refuse",),
    ),
    Break(
        "`SoftmaxRegressionCV` has the scores, paths and choice",
        _CV,
        "scores.sum(axis=0).argmax()",
        "scores.max(axis=0).argmax()",
        ("test_the_choice_is_that_of_logistic_regression",),
    ),
    Break(
        "`SoftmaxRegressionCV` has the scores, paths and choice",
        _CV,
        "            C=C,\n            l1_ratio=l1_ratio,\n",
        "            C=2 * C,\n            l1_ratio=l1_ratio,\n",
        ("test_each_fit_of_the_path_is_the_optimum_of_its_fold",),
    ),
    Break(
        "`SoftmaxRegressionCV` has the scores, paths and choice",
        _CV,
        "    if not partition:\n",
        "    if True:\n",
        ("test_folds_share_the_data",),
    ),
    Break(
        "`predict_proba` is within [0, 1]",
        "pyce/sklearn/_classifier.py",
        "        return pyce.softmax(logits, out=logits)\n",
        "        p = np.exp(logits - logits.max(1, keepdims=True))\n"
        "        return p / (p.sum(1, keepdims=True) * (1 - np.finfo(p.dtype).eps))\n",
    ),
    Break(
        "A fit allocates no array of the size of the scores",
        "pyce/sklearn/_objective.py",
        "_BLOCK_BYTES = 2**21",
        "_BLOCK_BYTES = 2**40",
    ),
    Break(
        "`pyce.dask.SoftmaxRegression` has the solution",
        _DASK,
        "for part, summary in zip(parts, found, strict=True) if summary.rows]",
        "for part, summary in zip(parts, found, strict=True)]",
        ("test_any_partitions_give_the_solution",),
    ),
    Break(
        "`pyce.dask.SoftmaxRegression` has the solution",
        "pyce/dask/_partition.py",
        "        weight = of_classes[labels] if weight is None else weight * of_classes[labels]\n",
        "        weight = of_classes[labels]\n",
        ("test_options",),
    ),
    *(
        Break(
            "`pyce.dask.SoftmaxRegression` has the solution",
            "pyce/dask/_objective.py",
            "            total = add(dask.compute(*results))\n",
            "            alone = dask.config.get('scheduler', None) == 'synchronous'\n"
            "            total = add(dask.compute(*results)[:: 1 if alone else -1])\n",
            (test,),
        )
        for test in (
            "test_the_order_in_which_tasks_end_changes_nothing",
            "test_the_bytes_do_not_depend_on_the_scheduler",
        )
    ),
    Break(
        "Its errors name the first partition in error",
        "pyce/dask/_partition.py",
        'return f"partition {number}: {error}{_other_columns(x)}"',
        "raise",
        ("test_data_that_do_not_fit",),
    ),
    Break(
        "Its errors name the first partition in error",
        "pyce/dask/_partition.py",
        '        raise ValueError(f"partition {number}: {error}") from error\n',
        "        raise\n",
        ("test_errors_of_predictions_name_the_partition",),
    ),
    Break(
        "A fit on a cluster ends with the same solution",
        _DASK,
        "        printer = Printer(self.verbose, self.max_iter)\n        objective: Any",
        "        _summaries.prepared = prepared\n"
        "        printer = Printer(self.verbose, self.max_iter)\n        objective: Any",
        ("test_nothing_stays_behind",),
    ),
)
