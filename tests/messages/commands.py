"""What `implicitexp ...` says: a message -> the command lines that provoke it -> the key, the bad value, the valid ones,
the nearest match. `conf`: the folder of `own_problems`."""

# Said before JAX is imported.
COMMANDS = {
    "{}: there is no such flag{}.": {"problem=ode --frobnicate": ["--frobnicate", "--config-dir"]},
    "--experimental-rerun: not here; a run is repeated by the values in its config.yaml.": {
        "problem=ode --experimental-rerun x": ["--experimental-rerun", "config.yaml"],
    },
    "--resolve and --package say how --cfg shows a configuration; add --cfg job.": {
        "problem=ode --resolve": ["--resolve", "--cfg"],
    },
    "-sc: a shell completes the console script, not python -m; use: implicitexp -sc install=bash.": {
        "-sc install=bash": ["-sc", "implicitexp -sc install=bash"],
    },
    "{}; see --help.": {"problem=ode --cfg nope": ["--cfg", "nope", "job", "--help"]},
    "check what? Give a class, as: implicitexp check my_module.MyProblem [field=value ...].": {
        "check": ["check what?", "my_module.MyProblem"],
    },
    "check {}: it cannot be imported: {}.": {
        "check implicitexp.problems.Keplr": ["implicitexp.problems.Keplr", "did you mean Kepler?"],
    },
    "list {}: there is no such list{}.": {"list solver": ["list solver", "did you mean solvers?", "schedules"]},
    "check: {}: write a field of the class as name=value.": {
        "check implicitexp.problems.Kepler target": ["target", "name=value"],
    },
    "{}": {
        "problem=ode ~foo": ["foo"],
        "problem=ode steps=${foo}": ["steps", "foo"],
        "problem=ode hydra.rundir=x": ["hydra.rundir"],
        "problem=ode hydra.searchpath=[file:///none]": ["hydra.searchpath", "/none"],
        "problem=ode --config-name nonexist": ["nonexist"],
        "--config-dir conf problem=tab": ["conf/problem/tab.yaml", "line 3", "not YAML"],
        "--config-dir conf problem=latin": ["conf/problem/latin.yaml", "UTF-8"],
        "--config-dir conf problem=dangling": ["problem.target", "foo.bar"],
    },
    "{}: this cannot be read ({}); write {}.": {
        "problem=ode steps=[1": ["steps=[1", "cannot be read"],
        "problem=ode steps": ["steps", "NAME=VALUE"],
    },
    "{}: this preset is a sweep over {}; add -m.": {
        "experiment=compare_all": ["experiment=compare_all", "a sweep over problem", "add -m"],
        "experiment=residual_or_ode steps=1": ["experiment=residual_or_ode", "problem.layer, seed", "add -m"],
    },
    "{}: several values are a sweep, for which -m is missing; a list is [1,2].": {"problem=ode steps=1,2": ["steps=1,2", "-m"]},
    "{} The launcher that has n_jobs is hydra/launcher=local.": {
        "-m problem=root_kepler hydra.launcher.n_jobs=2": ["n_jobs", "hydra/launcher=local"],
    },
    "{} is missing; choose one, as {}=NAME. {}s: {}.": {
        "": ["problem is missing", "problem=NAME", "brachistochrone", "root_kepler"],
    },
    "{} {}: there is no such folder ({}).": {"problem=ode --config-dir nonexist": ["--config-dir nonexist", "no such folder"]},
    "dashboard port={}: must be a whole number from 1 to 65535.": {"dashboard port=0": ["port=0", "from 1 to 65535"]},
    "dashboard {}: it takes tracker.uri=URI, port=5000 and host=127.0.0.1.": {"dashboard prt=1": ["prt=1", "port=5000"]},
    "{}={}: must be {}.": {
        "problem=ode steps=-3": ["steps=-3", "a whole number 0 or more"],
        "problem=ode steps=null": ["steps=null", "a whole number"],
        "problem=ode solver.rtol=0": ["solver.rtol=0", "above 0"],
        "problem=ode solver.rtol=nan": ["solver.rtol=nan", "above 0"],
        "problem=root_kepler gradient=unroll gradient.last=0": ["gradient.last=0", "1 or more"],
        "problem=ode optimizer.learning_rate=0": ["optimizer.learning_rate=0", "above 0"],
        "problem=ode optimizer.b1=2": ["optimizer.b1=2", "1 or less"],
        "problem=ode optimizer=lbfgs optimizer.linesearch.tol=-1": ["linesearch.tol=-1", "0 or more"],
        "problem=ode check_every=0": ["check_every=0", "1 or more"],
        "problem=ode patience=0": ["patience=0", "1 or more", "null"],
        "problem=ode target_loss=low": ["target_loss=low", "a number"],
        "problem=ode optimizer/schedule=cosine optimizer.learning_rate.decay_steps=0": ["decay_steps=0", "1 or more"],
        "problem=ode clip_norm=0": ["clip_norm=0", "above 0"],
        "problem=ode seed=-1": ["seed=-1"],
        "problem=ode reference.target=0": ["reference.target=0"],
        "problem=root_kepler gradient=per_kind gradient.ode.rtol=0": ["gradient.ode.rtol=0", "above 0"],
        "problem=root_kepler solver=per_kind solver.root.max_steps=0": ["solver.root.max_steps=0", "1 or more"],
        "-m experiment=compare_all steps=-1": ["steps=-1", "0 or more"],
        "-m problem=root_kepler hydra/launcher=local hydra.launcher.n_jobs=0": ["hydra.launcher.n_jobs=0", "1 or more"],
        "-m +problem=root_kepler gradient=unroll,implicit solver.rtol=0,1e-3": ["solver.rtol=0", "above 0"],
        "-m problem=root_kepler steps=range(1,3) seed=-1": ["seed=-1"],
        "-m problem=root_kepler solver.rtol=interval(0,1) seed=-1": ["seed=-1"],
    },
    "{}={}: there is no such choice{}.": {
        "problem=ode solver.when_not_converged=go": ["when_not_converged=go", "keep, stop"],
        "problem=ode gradient.linear_solver=lux": ["linear_solver=lux", "did you mean lu?", "gmres"],
        "problem=integral_pendulum solver=gauss_kronrod solver.order=22": ["solver.order=22", "15, 21, 31"],
        "problem=ode precision=float16": ["precision=float16", "float32, float64"],
        "problem=ode task=comparee": ["task=comparee", "did you mean compare?"],
        "problem=ode optimizer=muon optimizer.preconditioning=none": ["preconditioning=none", "frobenius"],
        "problem=ode sort_by=los": ["sort_by=los", "did you mean loss?"],
    },
    "{}: there is no key {}{}{}.": {
        "sovler=newton problem=ode": ["sovler=newton", "did you mean solver?", "optimizer"],
        "problem=ode stepps=4": ["stepps=4", "did you mean steps?", "log_every"],
        "problem=ode rtol=1e-3": ["rtol=1e-3", "did you mean solver.rtol?"],
        "problem=ode optimizer.lr=1e-3": ["optimizer.lr=1e-3", "learning_rate"],
        "problem=ode solver.rtl=1": ["solver.rtl=1", "did you mean rtol?", "max_steps"],
        "problem=ode solver=euler solver.rtol=1": ["solver.rtol=1", "dt0"],
        "problem=ode +foo=1": ["+foo=1", "no key 'foo'"],
        "problem=ode +solver.foo=1": ["+solver.foo=1", "rtol"],
        "--config-dir conf problem=kepler problem.taget=2": ["problem.taget=2", "did you mean target?"],
        "-m experiment=brachistochrone_all problem=root_kepler": ["formulation", "eccentricity"],
    },
    "task=compare device=mesh: costs are compared on one device; use device=auto, cpu or gpu.": {
        "problem=ode device=mesh task=compare": ["device=mesh", "one device", "device=auto"],
    },
    "{}=???: a value is missing; give it as {}=VALUE.": {
        "--config-dir conf problem=mandatory": ["problem.mean_anomaly=???", "problem.mean_anomaly=VALUE"],
    },
    "hints: must be a node, as config.yaml explains.": {"--config-dir conf problem=hints_number": ["hints: must be a node"]},
    "hints.choices: must be a node of keys and lists, as config.yaml explains.": {
        "--config-dir conf problem=hints_choices": ["hints.choices", "keys and lists"],
    },
    "solver={} is for {}, but problem={} solves {}; use one of the solvers for that: {}.": {
        "problem=brachistochrone problem.formulation=root solver=tsit5": ["solver=tsit5", "an ODE", "a root", "newton"],
        "problem=root_kepler solver=tsit5": ["solver=tsit5", "root_kepler", "auto, bisection, chord, dogleg"],
        "problem=ode solver=newton": ["solver=newton", "problem=ode", "dopri8, euler, fixed_step"],
        "-m problem=root_kepler,ode solver=newton": ["solver=newton", "problem=ode"],
    },
    "gradient={} is for {}, but problem={} solves {}; use one of the strategies for that: {}.": {
        "problem=root_kepler gradient=replay": ["gradient=replay", "an ODE", "a root", "adjoint, finite_difference, forward"],
        "problem=ode gradient=neumann": ["gradient=neumann", "a root and a fixed point", "problem=ode", "replay"],
    },
    "{}={}: there is no such {}{}.": {
        "problem=odee": ["problem=odee", "did you mean ode?", "root_kepler"],
        "problem=null": ["problem=null", "root_kepler"],
        "problem=[ode,root_kepler]": ["problem=[ode,root_kepler]", "root_kepler"],
        "problem=ode solver=newtn": ["solver=newtn", "did you mean newton?", "tsit5"],
        "problem=ode gradient=adjiont": ["gradient=adjiont", "did you mean adjoint?", "unroll"],
        "problem=ode optimizer=adamm": ["optimizer=adamm", "did you mean adam?", "lbfgs"],
        "problem=ode device=cuda": ["device=cuda", "auto, cpu, gpu"],
        "problem=ode tracker=wandb": ["tracker=wandb", "mlflow, none"],
        "problem=ode experiment=quik": ["experiment=quik", "did you mean quick?"],
        "problem=ode optimizer/schedule=cosin": ["optimizer/schedule=cosin", "did you mean cosine?", "warmup_cosine"],
        "--config-dir conf problem=keplerr": ["problem=keplerr", "did you mean kepler?", "root_kepler"],
        "-m problem=root_kepler hydra/launcher=loca": ["hydra/launcher=loca", "did you mean local?", "basic"],
        "-m problem=root_kepler,odee": ["problem=odee", "did you mean ode?"],
    },
    "{}: hints are what a YAML says of itself, and not for the command line.": {
        "problem=ode hints.kinds=[root]": ["hints.kinds", "not for the command line"],
    },
    "{}: the key is there already; leave the + away.": {"problem=ode +steps=5": ["+steps=5", "leave the + away"]},
    "{}: must be {} (as {}), not {}.": {
        "problem=ode steps=abc": ["steps=abc", "a whole number"],
        "problem=ode steps=1.5": ["steps=1.5", "a whole number"],
        "problem=ode steps=true": ["steps=true", "a whole number"],
        "problem=brachistochrone problem.P=3": ["problem.P=3", "a list"],
        "problem=brachistochrone problem.P=[1,a]": ["problem.P=[1,a]", "a number"],
        "problem=ode reference=5": ["reference=5", "target"],
        "--config-dir conf problem=kepler problem.target=far": ["problem.target=far", "a number"],
    },
    "{}: there is no such key{}.": {"--config-dir conf problem=toplevel": ["stepss", "did you mean steps?"]},
    "{} is missing; give {}=NAME (see --help).": {"problem=ode ~solver": ["solver is missing"]},
    "{}: its YAML must hold keys and values, as `_target_: module.Name`.": {
        "--config-dir conf problem=list": ["problem=list", "keys and values"],
    },
    "{} is missing; leave the ~ away, or give {}=VALUE.": {"problem=ode ~steps": ["steps is missing"]},
    "{} has no _target_: its YAML must name a class, `_target_: module.Name`.": {
        "--config-dir conf problem=classless": ["problem", "_target_: module.Name"],
    },
    "problem.{}={}: there is no such choice{}.": {
        "problem=brachistochrone problem.formulation=rot": ["formulation=rot", "did you mean root?", "direct, ode, root"],
    },
    "hints.{}={}: must be a {}, as config.yaml explains.": {
        "--config-dir conf problem=hints_kinds": ["hints.kinds=root", "a list"],
    },
    "hints: {} is no kind of equation{}.": {"--config-dir conf problem=badhints": ["rot", "did you mean root?"]},
    "hints.range.{}={}: must be [least, largest].": {
        "--config-dir conf problem=hints_range": ["hints.range.target=3", "[least, largest]"],
    },
    "problem.{}={}: must be a list of {} numbers.": {
        "problem=brachistochrone problem.P=[1,2,3]": ["problem.P=[1,2,3]", "2 numbers"],
    },
    "{}={}: must be a number, or a list of numbers where the default is one.": {
        "--config-dir conf problem=hints_positive": ["problem.target=far", "a number"],
    },
    "{}._target_={} cannot be imported: {}.": {
        "problem=ode problem._target_=implicitexp.problems.Keplr": ["implicitexp.problems.Keplr", "did you mean Kepler?"],
        "problem=ode optimizer._target_=optax.adamz": ["optax.adamz", "did you mean adam"],
        "problem=ode optimizer.learning_rate={_target_:optax.nope}": ["optimizer.learning_rate._target_=optax.nope"],
        "problem=ode solver.ode={_target_:implicitexp.solvers.Tsit6}": ["solver.ode._target_", "did you mean Tsit5?"],
        "--config-dir conf problem=misspelt": ["own.Keppler", "own.py", "did you mean Kepler?"],
        "--config-dir conf problem=nomodule": ["my_modul.Kepler", "no module 'my_modul'"],
        "--config-dir conf problem=syntax": ["own_syntax.Kepler", "own_syntax.py, line 1"],
    },
    "gradient.last={}: unroll knows a last iteration of a root and of a fixed point, not of {}; use gradient.last=null, or "
    "gradient=adjoint.": {
        "problem=ode gradient=unroll gradient.last=3": ["gradient.last=3", "an ODE", "gradient=adjoint"],
    },
    "{}: {} is {}, it has no keys.": {"problem=ode steps.x=1": ["steps.x=1", "a whole number"]},
    "problem.{}={}: must be above 0, which {} is not.": {
        "problem=brachistochrone problem.P=[1,-1]": ["problem.P=[1,-1]", "above 0", "-1"],
    },
    "problem.{}={}: must be from {} to {}.": {
        "problem=root_kepler problem.eccentricity=1.5": ["problem.eccentricity=1.5", "from 0 to 0.99"],
    },
    "tracker.uri={} is no store of MLflow: use sqlite:///runs/mlflow.db (a file), http://host:5000 (a server) or a "
    "database such as postgresql://; tracker=none does without": {
        "dashboard tracker.uri=mlruns": ["tracker.uri=mlruns", "sqlite:///runs/mlflow.db", "tracker=none"],
    },
    "tracker.uri={} names no file: use sqlite:///runs/mlflow.db": {
        "dashboard tracker.uri=sqlite://": ["tracker.uri=sqlite://", "sqlite:///runs/mlflow.db"],
    },
    "There is no store {}: run `implicitexp problem=ode` in this folder first, or name another one: `implicitexp dashboard "
    "tracker.uri=sqlite:///PATH/mlflow.db`": {
        "dashboard tracker.uri=sqlite:///absent/mlflow.db": ["absent/mlflow.db", "implicitexp problem=ode"],
    },
}  # fmt: skip

# Said by what only importing, building and tracing find out, in a run of these problems with the module and method.
RUNS = {
    "{}={} cannot be imported: {}{}.": {
        "broken": ["problem._target_=own_broken.Kepler", "no licence", "own_broken.py, line 2"],
    },
    "device={} is not available: JAX sees {} here. Use device=auto, or install JAX for that device (for an NVIDIA GPU: pip "
    "install 'jax[cuda13]').": {
        "kepler device=gpu": ["device=gpu", "cpu"],
    },
    "{}: {} cannot be built: {}.": {
        "picky": ["problem", "own.Picky", "target must be above 2"],
        "abstract": ["problem", "own.Abstract", "loss"],
    },
    "{} must return a pytree of floating point arrays, but has {} in it; return e.g. jnp.array(0.1) or {'name': "
    "jnp.zeros(3)}.": {
        "words": ["own.Words.init", "array"],
        "whole": ["own.Whole.init", "floating point"],
    },
    "{} returns parameters that are not finite.": {"infinite": ["own.Infinite.init", "not finite"]},
    "{} must return a scalar (or a scalar and a dictionary), but returns {}{}.": {
        "vector": ["own.Vector.loss", "scalar"],
        "nothing": ["own.Nothing.loss", "scalar"],
    },
    "{} must return scalars in its dictionary of metrics, but returns {}.": {
        "metrics": ["own.Metrics.loss", "scalars in its dictionary"],
    },
    "solver={} solves {}, but {} solves {}; use solver=auto or one of that kind.": {
        "kepler solver=tsit5": ["Tsit5", "own.Kepler.loss", "a root"],
    },
    "{} is {} at the parameters that {} gives: {}.": {"notanumber": ["own.NotANumber.loss", "nan", "own.NotANumber.init"]},
    "the gradient of {} is not finite at the parameters that {} gives: {}.": {
        "steep": ["the gradient of own.Steep.loss", "own.Steep.init", "sqrt"],
    },
    "optimizer: {} cannot be used: {}.": {"kepler optimizer.mu_dtype=nope": ["optimizer", "adam", "nope"]},
    "{}: {} does not fit: {}. It takes {}.": {
        "misfit": ["problem", "own.Kepler", "targett", "mean_anomaly, target"],
        "kepler optimizer._target_=optax.sgd": ["optimizer", "b1", "momentum"],
    },
}  # fmt: skip
